# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The VMM's state machine: what each call does in each state (vmm/src/lib.rs, measured on v53.0)."""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from . import config as model
from .console import Console
from .errors import Refused, not_emulated, os_error
from .events import Events
from .guest import Ending, Guest
from .qmp import QmpError

Json = dict[str, Any]
VERSION = "53.0.0"
BUILD_VERSION = "v53.0-qemu-stand-in"

NOT_CREATED = "VM is not created"
NOT_RUNNING = "VM is not running"
ALREADY_CREATED = "VM is already created"


class Vmm:
    """Runs every call in the main thread, one after the other; ``run`` returns the process's exit status."""

    def __init__(self, events: Events, *, keep_after_shutdown: bool = False) -> None:
        self._events = events
        self._keep_after_shutdown = keep_after_shutdown
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._exit_status: int | None = None
        self.config: Json | None = None
        self.guest: Guest | None = None
        self.paused = False
        self._consoles: dict[str, Console] = {}
        self._vsock: socket.socket | None = None
        events.emit("vmm", "starting")

    # ---- The main thread's loop ----

    def run(self) -> int:
        """Handle calls until the VMM ends; then end the guest."""
        while self._exit_status is None:
            self._queue.get()()
        self._stop_guest()
        self._close()
        return self._exit_status

    def submit(self, call: Callable[[], Any]) -> Any:
        """Run ``call`` in the main thread; return its result or raise its error."""
        done = threading.Event()
        result: list[Any] = []
        errors: list[Exception] = []

        def work() -> None:
            try:
                result.append(call())
            except QmpError as error:
                errors.append(Refused("qemu_vmm stand-in", str(error)))
            except Exception as error:
                errors.append(error)
            done.set()

        self._queue.put(work)
        done.wait()
        if errors:
            raise errors[0]
        return result[0]

    def _last_events(self) -> None:
        if self.config is not None:
            self._events.emit("vm", "deleted")
        self._events.emit("vmm", "shutdown")

    def terminate(self) -> None:
        """End the VMM as a signal asks for it."""
        self._queue.put(self.shutdown_vmm)

    def _end(self, status: int) -> None:
        if self._exit_status is None:
            self._exit_status = status

    # ---- What needs no VM ----

    def ping(self) -> Json:
        """Say which VMM this is."""
        return {"build_version": BUILD_VERSION, "version": VERSION, "pid": os.getpid(), "features": ["io_uring", "kvm"]}

    def shutdown_vmm(self) -> None:
        """End the VMM."""
        if self.guest is not None:
            self.shutdown()
        self._last_events()
        self._end(0)

    # ---- The VM's life ----

    def create(self, config: Json) -> None:
        """Keep the configuration and open the consoles."""
        if self.config is not None:
            raise Refused(ALREADY_CREATED)
        self.config = config
        self._open_consoles()

    def _open_consoles(self) -> None:
        assert self.config is not None
        try:
            for name in ("serial", "console"):
                if name not in self._consoles:
                    self._consoles[name] = Console(name, self.config[name])
        except Refused:
            self._close()
            raise

    def boot(self) -> None:
        """Start the guest."""
        self._events.emit("vm", "booting")
        if self.config is None:
            raise Refused("VM config is missing")
        if self.guest is not None:
            raise Refused(ALREADY_CREATED)
        self._start_guest()
        self._events.emit("vm", "booted")

    def _start_guest(self) -> None:
        assert self.config is not None
        model.check(self.config)
        for name in model.NOT_EMULATED:
            if self.config.get(name):
                raise not_emulated(f"'{name}'")
        self._open_consoles()
        self._listen_vsock()
        self.guest = Guest(self.config, self._consoles, self._guest_ended)
        self.paused = False

    def _listen_vsock(self) -> None:
        if self.config is None or "vsock" not in self.config or self._vsock is not None:
            return
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(self.config["vsock"]["socket"])
        except OSError as error:
            listener.close()
            # The interpreter itself refuses a path that is too long, without an errno.
            last = os_error(error) if error.errno else "path must be shorter than SUN_LEN"
            raise Refused(
                "Error from device manager",
                "Cannot create virtio-vsock backend",
                "Error binding to the host-side Unix socket",
                last,
            ) from error
        listener.listen()
        self._vsock = listener

    def _guest_ended(self, guest: Guest, ending: Ending) -> None:
        self._queue.put(lambda: self._after(guest, ending))

    def _after(self, guest: Guest, ending: Ending) -> None:
        """What follows when a guest ends that nobody here ended: it powered off, or QEMU failed."""
        if guest is not self.guest:
            return
        if ending == "reset":
            try:
                self.reboot()
            except Refused as error:
                print(f"Error rebooting VM: {error}", file=sys.stderr, flush=True)
                self._end(1)
            return
        self._stop_guest()
        if ending == "failed":
            self._end(1)
            return
        self._events.emit("vm", "shutdown")
        if not self._keep_after_shutdown:
            self._last_events()
            self._end(0)

    def _stop_guest(self) -> None:
        if self.guest is not None:
            guest, self.guest = self.guest, None
            guest.stop()
            self.paused = False
            self._close()

    def _close(self) -> None:
        for console in self._consoles.values():
            console.close()
        self._consoles = {}
        if self._vsock is not None and self.config is not None:
            self._vsock.close()
            self._vsock = None
            with suppress(OSError):
                os.unlink(self.config["vsock"]["socket"])

    def shutdown(self) -> None:
        """Switch the guest off; its configuration stays."""
        self._running()
        self._stop_guest()
        self._events.emit("vm", "shutdown")

    def delete(self) -> None:
        """Forget the VM, switching it off first."""
        if self.guest is not None:
            self.shutdown()
        if self.config is not None:
            self._close()
            self.config = None
            self._events.emit("vm", "deleted")

    def reboot(self) -> None:
        """Start the guest anew, without asking it."""
        self._events.emit("vm", "rebooting")
        if self.guest is None:
            raise Refused(NOT_CREATED)
        self._stop_guest()
        self._start_guest()
        self._events.emit("vm", "rebooted")

    def pause(self) -> None:
        """Stop the vCPUs."""
        guest = self._running()
        self._events.emit("vm", "pausing")
        if self.paused:
            raise _transition("pause", "Paused")
        guest.qmp.command("stop")
        self.paused = True
        self._events.emit("vm", "paused")

    def resume(self) -> None:
        """Let the vCPUs run on."""
        guest = self._running()
        self._events.emit("vm", "resuming")
        if not self.paused:
            raise _transition("resume", "Running")
        guest.qmp.command("cont")
        self.paused = False
        self._events.emit("vm", "resumed")

    def power_button(self) -> None:
        """Press the ACPI power button."""
        guest = self._running()
        if not guest.tiny:
            guest.qmp.command("system_powerdown")

    def nmi(self) -> None:
        """Inject an NMI."""
        self._running().qmp.command("inject-nmi")

    def _running(self) -> Guest:
        if self.guest is None:
            raise Refused(NOT_RUNNING)
        return self.guest

    # ---- What there is ----

    def info(self) -> Json:
        """Return the VM's configuration and state."""
        if self.config is None:
            raise Refused(NOT_CREATED)
        if self.guest is None:
            return {"config": self.config, "state": "Created", "memory_actual_size": self.config["memory"]["size"]}
        return {
            "config": self.config,
            "state": "Paused" if self.paused else "Running",
            "memory_actual_size": self.guest.memory_size(),
            "device_tree": self.guest.tree(),
        }

    def counters(self) -> Json:
        """Return the devices' counters."""
        return self._running().counters()

    # ---- Changes ----

    def _created(self) -> Json:
        if self.config is None:
            raise Refused(NOT_CREATED)
        return self.config

    def resize(self, wanted: Json) -> None:
        """Change vCPUs, memory, balloon; of a VM that is not running only the configuration."""
        config = self._created()
        if self.guest is not None:
            self._events.emit("vm", "resizing")
            if "desired_vcpus" in wanted:
                self.guest.resize_cpus(wanted["desired_vcpus"])
            if "desired_ram" in wanted:
                self.guest.resize_memory(wanted["desired_ram"])
            if "desired_balloon" in wanted:
                self.guest.resize_balloon(wanted["desired_balloon"])
            self._events.emit("vm", "resized")
        else:
            if "desired_vcpus" in wanted:
                config["cpus"]["boot_vcpus"] = wanted["desired_vcpus"]
            if "desired_ram" in wanted:
                config["memory"]["size"] = wanted["desired_ram"]
            if "desired_balloon" in wanted and "balloon" in config:
                config["balloon"]["size"] = wanted["desired_balloon"]

    def resize_disk(self, wanted: Json) -> None:
        """Change a disk's size."""
        self._created()
        if self.guest is None:
            raise Refused("Failed resizing a disk image")
        self.guest.resize_disk(wanted["id"], wanted["desired_size"])

    def resize_zone(self, wanted: Json) -> None:
        """Refuse: no zone is emulated."""
        self._created()
        raise Refused("Failed resizing a memory zone")

    def add_disk(self, disk: Json) -> Json | None:
        """Add a disk, now or for the next boot."""
        return self._add("disks", disk, model.check_disk, Guest.add_disk)

    def add_net(self, net: Json) -> Json | None:
        """Add a network device, now or for the next boot."""
        return self._add("net", net, model.check_net, Guest.add_net)

    def _add(
        self,
        kind: str,
        device: Json,
        check: Callable[[Json, Json], None],
        plug: Callable[[Guest, Json], Json],
    ) -> Json | None:
        config = self._created()
        check(config, device)
        model.check_new_id(config, device)
        plugged = plug(self.guest, device) if self.guest is not None else None
        config.setdefault(kind, []).append(device)
        return plugged

    def add_vsock(self, vsock: Json) -> None:
        """Add a vsock device for the next boot; a running guest gets none."""
        config = self._created()
        if "vsock" in config:
            raise Refused("Too many virtio-vsock devices")
        if self.guest is not None:
            raise not_emulated("a hot-plugged vsock device")
        config["vsock"] = vsock

    def add_other(self, kind: str) -> None:
        """Refuse a device by its name."""
        memory = self._created()["memory"]
        if kind in ("fs", "generic-vhost-user") and not (memory["shared"] or memory["hugepages"]):
            raise model.not_shared()
        raise not_emulated(f"a device of the kind '{kind}'")

    def remove_device(self, wanted: Json) -> None:
        """Take a device away."""
        config, name = self._created(), wanted["id"]
        if self.guest is not None:
            self.guest.remove(name)
        found = False
        for kind in ("disks", "net"):
            if any(device.get("id") == name for device in config.get(kind, [])):
                config[kind] = [device for device in config[kind] if device.get("id") != name]
                found = True
        if not found and self.guest is None:
            raise Refused(f'No device with id "{name}" to remove')

    def snapshot(self, wanted: Json) -> None:
        """Refuse: the snapshot of a paused VM comes later."""
        self._running()
        if not self.paused:
            raise Refused(
                "Cannot snapshot VM",
                "Failed to snapshot migratable component",
                "Trying to snapshot while VM is running",
            )
        raise not_emulated("a snapshot")

    def restore(self, wanted: Json) -> None:
        """Refuse."""
        if self.config is not None or self.guest is not None:
            raise Refused(ALREADY_CREATED)
        raise not_emulated("the restoration of a snapshot")

    def migrate(self, wanted: Any) -> None:
        """Refuse."""
        raise not_emulated("migration")


def _transition(what: str, state: str) -> Refused:
    return Refused(
        f"Cannot {what} VM",
        f"Failed to {what} migratable component",
        f"Invalid transition: InvalidStateTransition({state}, {state})",
    )
