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
from . import config_checks, guest_migration, migration, vsock
from .console import Console
from .errors import Refused, not_emulated, os_error
from .events import Events
from .guest import Ending, Guest
from .qmp import QmpError

Json = dict[str, Any]
# Of which release it is to be: what it does is in any case as v53.0 does it.
RELEASE = os.environ.get("QEMU_VMM_RELEASE", "53.0")
VERSION = f"{RELEASE}.0"
BUILD_VERSION = f"v{RELEASE}-qemu-stand-in"

NOT_CREATED = "VM is not created"
NOT_RUNNING = "VM is not running"
ALREADY_CREATED = "VM is already created"
MIGRATING = "VM is currently migrating and can't be modified"


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
        # What vm.info answers while the VM is on its way to another VMM.
        self._migrating: Json | None = None
        self._consoles: dict[str, Console] = {}
        self._vsock: socket.socket | vsock.Device | None = None
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
        config_checks.check(self.config)
        for name in model.NOT_EMULATED:
            if self.config.get(name):
                raise not_emulated(f"'{name}'")
        self._open_consoles()
        self._listen_vsock()
        control = None
        if self._vsock is not None and vsock.emulated(self.config):
            self._stop_listening()
            self._vsock = vsock.Device(self.config["vsock"])
            control = vsock.control(self.config["vsock"])
        self.guest = Guest(self.config, self._consoles, self._guest_ended, vsock=control)
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
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._vsock is not None and self.config is not None:
            self._vsock.close()
            self._vsock = None
            with suppress(OSError):
                os.unlink(self.config["vsock"]["socket"])

    def _close_vsock(self) -> None:
        self._stop_listening()
        if self.config is not None:
            self.config.pop("vsock", None)

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
        if self._migrating is not None:
            raise Refused(MIGRATING)
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
        if self._migrating is not None:
            raise Refused(MIGRATING)
        if self.guest is None:
            raise Refused(NOT_RUNNING)
        return self.guest

    # ---- What there is ----

    def info(self) -> Json:
        """Return the VM's configuration and state."""
        if self._migrating is not None:
            return self._migrating
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
        if self._migrating is not None:
            raise Refused(MIGRATING)
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
        return self._add("disks", disk, config_checks.check_disk, Guest.add_disk)

    def add_net(self, net: Json) -> Json | None:
        """Add a network device, now or for the next boot."""
        return self._add("net", net, config_checks.check_net, Guest.add_net)

    def _add(
        self,
        kind: str,
        device: Json,
        check: Callable[[Json, Json], None],
        plug: Callable[[Guest, Json], Json],
    ) -> Json | None:
        config = self._created()
        check(config, device)
        config_checks.check_new_id(config, device)
        plugged = plug(self.guest, device) if self.guest is not None else None
        config.setdefault(kind, []).append(device)
        return plugged

    def add_vsock(self, vsock: Json) -> Json | None:
        """Add a vsock device, now or for the next boot."""
        config = self._created()
        if "vsock" in config:
            raise Refused("Too many virtio-vsock devices")
        config["vsock"] = vsock
        if self.guest is None:
            return None
        try:
            self._listen_vsock()
            return self.guest.add_vsock(vsock)
        except Refused:
            self._close_vsock()
            raise

    def add_other(self, kind: str) -> None:
        """Refuse a device by its name."""
        memory = self._created()["memory"]
        if kind in ("fs", "generic-vhost-user") and not (memory["shared"] or memory["hugepages"]):
            raise config_checks.not_shared()
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
        if config.get("vsock", {}).get("id") == name:
            self._close_vsock()
            found = True
        if not found and self.guest is None:
            raise Refused(f'No device with id "{name}" to remove')

    # ---- Snapshots and migration ----

    def snapshot(self, wanted: Json) -> None:
        """Write the paused VM to a directory."""
        guest = self._running()
        self._events.emit("vm", "snapshotting")
        if not self.paused:
            raise Refused(
                "Cannot snapshot VM",
                "Failed to snapshot migratable component",
                "Trying to snapshot while VM is running",
            )
        if guest.qmp.command("query-status")["status"] == "postmigrate":
            raise not_emulated("a second snapshot of a guest that did not run since the first")
        state = guest.state()
        try:
            path = migration.directory(wanted["destination_url"])
            migration.write(path / migration.CONFIG, "VM config", self.config or {})
            migration.write(path / migration.STATE, "VM state", state)
            memory = migration.create(path / migration.MEMORY, "VM memory")
            try:
                guest_migration.send(guest.qmp, memory)
            finally:
                os.close(memory)
        except Refused as error:
            raise Refused("Cannot send VM snapshot", *error.causes) from error
        self._events.emit("vm", "snapshotted")

    def restore(self, wanted: Json) -> None:
        """Make a paused VM of a snapshot."""
        if self.config is not None or self.guest is not None:
            raise Refused(ALREADY_CREATED)
        if wanted["memory_restore_mode"] != "Copy":
            raise not_emulated("the restoration of memory on demand")
        try:
            path = migration.directory(wanted["source_url"])
            config = migration.read(path / migration.CONFIG, "VM config")
            state = migration.read(path / migration.STATE, "VM state")
        except Refused as error:
            raise Refused("Cannot restore VM", *error.causes) from error
        self._events.emit("vm", "restoring")
        try:
            with (path / migration.MEMORY).open("rb") as memory:
                self._take_over(config, state)
                guest_migration.receive(self._running().qmp, memory.fileno())
        except (Refused, OSError) as error:
            self.delete()
            if isinstance(error, Refused):
                raise
            raise Refused("Cannot restore VM", migration.RECEIVING, os_error(error)) from error
        self._events.emit("vm", "restored")
        if wanted["resume"]:
            self.resume()

    def _take_over(self, config: Json, state: Json, *, lock_disks: bool = True) -> None:
        """Start a guest that waits for another's stream."""
        self.config = model.vm(config)
        self._open_consoles()
        self._listen_vsock()
        self.guest = Guest(self.config, self._consoles, self._guest_ended, state, lock_disks=lock_disks)
        self.paused = True

    def receive_migration(self, wanted: Json) -> None:
        """Take another VMM's VM over. As in the real VMM, nothing else is answered meanwhile, and no signal is heeded."""
        if self.guest is not None:
            raise Refused(migration.RECEIVING, "Can't receive a migration when a VM is already created")
        migration.check_receive(wanted)
        with migration.listen(wanted["receiver_url"]) as listener:
            self._events.emit("vm", "migration-receive-ready")
            connection, _address = listener.accept()
        self._events.emit("vm", "migration-receive-started")
        with connection:
            asked = migration.receive(connection)
            try:
                self._take_over(asked["config"], asked["state"], lock_disks=False)
                guest = self._running()
                migration.send(connection, {"ok": True})
                guest_migration.receive(guest.qmp, connection.fileno())
                migration.send(connection, {"ok": True})
                asked = migration.receive(connection)
                guest.lock_disks(True)
                if asked["command"] == "complete":
                    self.resume()
                migration.send(connection, {"ok": True})
            except Refused as error:
                print(f"Migration aborted: {error}", file=sys.stderr, flush=True)
                with suppress(Refused):
                    migration.send(connection, {"ok": False})
                self._stop_guest()
                self._close()
                if error.causes[0] == "Socket error":
                    raise  # the real VMM keeps the configuration then
                self.config = None
                self._events.emit("vm", "migration-receive-failed")
                raise Refused(
                    "Failed to complete migration for migratable component", "Migration was aborted"
                ) from error
        self._events.emit("vm", "migration-receive-finished")

    def send_migration(self, wanted: Json) -> None:
        """Begin to hand the VM over to another VMM; the outcome shows in the events and in whether this VMM ends."""
        if self._migrating is not None:
            raise Refused(migration.SENDING, "There is already an ongoing migration")
        if self.guest is None or self.config is None:
            raise Refused(migration.SENDING, NOT_RUNNING)
        migration.check_send(wanted)
        if wanted["local"] and not (self.config["memory"]["shared"] or self.config["memory"]["hugepages"]):
            raise Refused(migration.SENDING, "Local migration requires shared memory or hugepages enabled")
        guest, state = self.guest, self.guest.state()
        self._migrating = self.info()
        threading.Thread(target=self._send, args=(guest, self.config, state, wanted), daemon=True).start()

    def _send(self, guest: Guest, config: Json, state: Json, wanted: Json) -> None:
        """Do the work of send_migration, in a thread of its own."""
        self._events.emit("vm", "migration-started")
        failure: Exception | None = None
        try:
            with migration.connect(wanted["destination_url"]) as connection:
                migration.ask(connection, {"command": "start", "config": config, "state": state})
                guest_migration.send(
                    guest.qmp,
                    connection.fileno(),
                    downtime_ms=wanted["downtime_ms"],
                    timeout_s=wanted["timeout_s"],
                    at_timeout=wanted["timeout_strategy"],
                )
                if not migration.receive(connection).get("ok"):
                    raise Refused(migration.SENDING, "The receiving VMM failed to restore the state")
                guest.lock_disks(False)
                migration.ask(connection, {"command": "complete_paused" if self.paused else "complete"})
        except (Refused, QmpError, OSError) as error:
            failure = error
        self._events.emit("vm", "migration-failed" if failure else "migration-finished")
        self._queue.put(lambda: self._sent(failure))

    def _sent(self, failure: Exception | None) -> None:
        self._migrating = None
        if failure is None:
            self._stop_guest()
            self._last_events()
            self._end(0)
            return
        print(f"Migration failed: {failure}", file=sys.stderr, flush=True)
        if self.guest is not None:
            with suppress(QmpError):
                self.guest.lock_disks(True)
                if not self.paused:
                    self.guest.go_on()


def _transition(what: str, state: str) -> Refused:
    return Refused(
        f"Cannot {what} VM",
        f"Failed to {what} migratable component",
        f"Invalid transition: InvalidStateTransition({state}, {state})",
    )
