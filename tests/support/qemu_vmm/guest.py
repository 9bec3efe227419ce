# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One booted guest: its QEMU process and the devices in it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from . import boot_files, counters
from .console import Console
from .disks import Disk
from .errors import Refused, not_emulated
from .qemu_options import escaped, fds_name, joined, on, smbios
from .qmp import Qmp, QmpError
from .tap import open_tap

Json = dict[str, Any]
Ending = Literal["off", "reset", "failed"]
QEMU = os.environ.get("QEMU_VMM_QEMU", "qemu-system-x86_64")
ACCEL = os.environ.get("QEMU_VMM_ACCEL", "tcg")
TCG = ACCEL.split(",")[0] == "tcg"
PR_SET_PDEATHSIG = 1
SHUTDOWN_PORT = 0x600  # devices/src/acpi.rs
POWERED_OFF = (0x34 << 1) | 1  # what isa-debug-exit makes of the 0x34 that the guest writes there
SPARE_PORTS = 8
PAGE = 4096
HOTPLUG_ALIGNMENT = 128 << 20  # vmm/src/memory_manager.rs

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Device:
    """A PCI device of the guest: ``name`` is the API's id, ``qid`` QEMU's."""

    name: str
    qid: str
    bdf: str = ""
    disk: Disk | None = None
    fds: list[int] = field(default_factory=list)
    removing: bool = False

    def close(self) -> None:
        """Give the disk's lock and the TAP back."""
        if self.disk is not None:
            self.disk.close()
        for fd in self.fds:
            os.close(fd)


class Guest:
    """Boots when made. ``on_exit(guest, ending)`` is called once QEMU has ended, from a thread of its own."""

    def __init__(
        self,
        config: Json,
        consoles: dict[str, Console],
        on_exit: Callable[[Guest, Ending], None],
        saved: Json | None = None,
        *,
        lock_disks: bool = True,
        vsock: str | None = None,
    ) -> None:
        """Boot, or with ``saved``, what ``state`` returned of another, wait for its stream.

        ``vsock`` is where the program listens that has the vsock device, if one has.
        """
        self._vsock = vsock
        self.config = config
        self._saved = saved
        self._lock_disks = lock_disks
        self.devices: dict[str, Device] = {}
        self._on_exit = on_exit
        self._unplugged = threading.Condition()
        self._number = 0
        self._names = 0
        self._slot = 1
        self._free_ports = list(range(SPARE_PORTS))
        self._port_of: dict[str, int] = {}
        self._boot_cpus = int(config["cpus"]["boot_vcpus"])
        self._boot_memory = self._memory = int(config["memory"]["size"])
        # What was plugged in besides disks and NICs, as QEMU's -device and -object take it.
        self._plugged: list[list[str]] = []
        self._places: dict[str, list[str]] = {}
        if saved is not None:
            self._number, self._boot_cpus = saved["number"], saved["boot_cpus"]
            self._boot_memory, self._memory = saved["boot_memory"], saved["memory"]
            self._plugged, self._places = saved["plugged"], saved["places"]
        self._pass: list[int] = []
        boot_files.check(config)
        if config["memory"]["size"] % PAGE or not config["memory"]["size"]:
            raise Refused(
                "Memory manager error", "Memory size is misaligned with default page size or its hugepage size"
            )
        self.tiny = boot_files.is_tiny(config["payload"])
        self._shutdown_reason = ""
        try:
            self._start(self._argv(consoles))
        except Refused as error:
            for device in self.devices.values():
                device.close()
            if "The file is already locked" in error.causes:
                cause = "Error locking disk images: Another instance likely holds a lock"
                raise Refused(cause, *error.causes[1:]) from error
            raise
        except BaseException:
            for device in self.devices.values():
                device.close()
            raise
        finally:
            self._release()

    def _release(self) -> None:
        """Close what QEMU has inherited: it is to be the only one at its end of each connection."""
        while self._pass:
            os.close(self._pass.pop())

    # ---- Booting ----

    def _argv(self, consoles: dict[str, Console]) -> list[str]:
        config, payload, memory = self.config, self.config["payload"], self.config["memory"]
        accel = f"{ACCEL},tb-size={32 if self.tiny else 512}" if TCG else ACCEL
        argv = [QEMU, "-accel", accel, "-cpu", "Nehalem" if TCG else "host"]
        argv += ["-no-reboot", "-nodefaults", "-no-user-config", "-display", "none", "-kernel", payload["kernel"]]
        cpus = config["cpus"]
        if self.tiny:
            # Without ACPI nothing else sits at the shutdown port.
            argv += ["-machine", "pc,acpi=off", "-device", f"isa-debug-exit,iobase={SHUTDOWN_PORT},iosize=1"]
            argv += ["-smp", f"cpus={self._boot_cpus}", "-m", f"size={self._boot_memory}B"]
            argv += ["-device", "pci-bridge,id=hotplug,chassis_nr=1,shpc=on,addr=0x1e"]
            self._slot = 2
        else:
            argv += ["-machine", "q35"]
            argv += ["-smp", f"cpus={self._boot_cpus},maxcpus={cpus['max_vcpus']}"]
            hotplug = memory.get("hotplug_size", 0)
            slots = f",slots=8,maxmem={self._boot_memory + hotplug}B" * bool(hotplug)
            argv += ["-m", f"size={self._boot_memory}B{slots}"]
            for port in range(SPARE_PORTS):
                argv += [
                    "-device",
                    f"pcie-root-port,id=port{port},chassis={port + 1},addr=0x1e.{port},multifunction=on",
                ]
        for option, name in (("-initrd", "initramfs"), ("-append", "cmdline")):
            if name in payload:
                argv += [option, payload[name]]
        argv += smbios(config.get("platform", {}))
        serial, fds = consoles["serial"].chardev()
        self._pass += fds
        argv += ["-chardev", serial, "-serial", "chardev:serial"]
        if config["console"]["mode"] != "Off":
            console, fds = consoles["console"].chardev()
            if console.startswith("stdio") and serial.startswith("stdio"):
                console = "null,id=console"  # QEMU has one standard input; the serial port gets it
            self._pass += fds
            argv += ["-chardev", console, "-device", f"virtio-serial-pci,id=vserial,{self._place('__console')}"]
            argv += ["-device", "virtconsole,chardev=console,bus=vserial.0"]
        for disk in config.get("disks", []):
            device, nodes, properties = self._disk(disk)
            for node in nodes:
                argv += ["-blockdev", json.dumps(node)]
            argv += ["-device", f"{joined(properties)},{self._place(device.name)}"]
        for net in config.get("net", []):
            device, backend, properties = self._net(net)
            self._pass += map(os.dup, device.fds)
            fds = self._pass[-len(device.fds) :]
            backend[fds_name(fds)] = ":".join(map(str, fds))
            argv += ["-netdev", joined({"type": backend.pop("type")} | backend, first="type")]
            argv += ["-device", f"{joined(properties)},{self._place(device.name)}"]
        rng = config["rng"]
        argv += ["-object", f"rng-random,id=entropy,filename={escaped(rng['src'])}"]
        argv += ["-device", f"virtio-rng-pci,rng=entropy,{self._place(rng.get('id', '__rng'))}"]
        if "vsock" in config:
            if self._vsock is None:
                self.add_vsock(config["vsock"])
            else:
                name = self._name("vsock", config["vsock"]).name
                argv += ["-object", f"memory-backend-memfd,id=shared,size={self._boot_memory}B,share=on"]
                argv += ["-machine", "memory-backend=shared", "-chardev", f"socket,id=vsock,path={self._vsock}"]
                argv += ["-device", f"vhost-user-vsock-pci,chardev=vsock,{self._place(name)}"]
        if "balloon" in config:
            balloon = config["balloon"]
            options = f"deflate-on-oom={on(balloon['deflate_on_oom'])},free-page-reporting="
            options += on(balloon["free_page_reporting"])
            argv += [
                "-device",
                f"virtio-balloon-pci,id=balloon,{options},{self._place(balloon.get('id', '__balloon'))}",
            ]
        if config["watchdog"]:
            argv += ["-device", f"i6300esb,{self._place('__watchdog')}", "-action", "watchdog=reset"]
        if config["pvpanic"]:
            argv += ["-device", "pvpanic"]
        for plugged in self._plugged:
            argv += plugged
        if self._saved is not None:
            self._slot = self._saved["slot"]
            argv += ["-S", "-incoming", "defer"]
        return argv

    def _start(self, argv: list[str]) -> None:
        ours, its = socket.socketpair()
        fd = its.detach()
        self._pass.append(fd)
        argv += ["-chardev", f"socket,id=qmp,fd={fd}", "-mon", "chardev=qmp,mode=control"]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when QEMU ends
        parent = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        if os.environ.get("QEMU_VMM_TRACE"):
            print(shlex.join(argv), flush=True)
        # The signal comes when the thread ends that forked: this must run in the main thread.
        self._process = subprocess.Popen(argv, stderr=self._errors, pass_fds=self._pass, preexec_fn=die_with_parent)
        self._release()
        self.qmp = Qmp(ours, self._event)
        threading.Thread(target=self._wait, daemon=True).start()
        try:
            self.qmp.command("qmp_capabilities")
        except QmpError as error:
            self._process.kill()
            self._process.wait()
            raise Refused("qemu_vmm stand-in: QEMU did not start", self._complaint()) from error

    def _complaint(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()

    def _wait(self) -> None:
        status = self._process.wait()
        if status not in (0, POWERED_OFF):
            message = f"qemu_vmm stand-in: QEMU ended with status {status}: {self._complaint()}"
            print(message, file=sys.stderr, flush=True)
        self._on_exit(self, self._ending(status))

    def _ending(self, status: int) -> Ending:
        if self._shutdown_reason == "guest-reset":
            return "reset"
        off = self._shutdown_reason == "guest-shutdown" or status == POWERED_OFF
        return "off" if off else "failed"

    def _event(self, name: str, data: Json) -> None:
        if name == "SHUTDOWN":
            self._shutdown_reason = data.get("reason", "")
        if name == "DEVICE_DELETED":
            with self._unplugged:
                found = [device for device in self.devices.values() if device.qid == data.get("device")]
                for device in found:
                    del self.devices[device.name]
                    self._free_ports.append(self._port_of.pop(device.name))
                    # Not from here: the answers to commands are read by this thread.
                    threading.Thread(target=self._forget, args=(device,), daemon=True).start()

    def _forget(self, device: Device) -> None:
        with contextlib.suppress(QmpError):
            if device.disk is not None:
                for node in reversed(device.disk.nodes(device.qid)):
                    self.qmp.command("blockdev-del", **{"node-name": node["node-name"]})
            else:
                self.qmp.command("netdev_del", id=f"{device.qid}-net")
        device.close()

    # ---- Devices ----

    def _name(self, kind: str, config: Json) -> Device:
        """Give a device its id: one counter for all kinds, as the real VMM's."""
        if "id" not in config:
            config["id"] = f"_{kind}{self._number}"
            self._number += 1
        name = config["id"]
        if name in self.devices:
            raise Refused("Error from device manager", f"Invalid identifier as it is not unique: {name}")
        self._names += 1
        return Device(name=name, qid=f"d{self._names}")

    def _place(self, name: str) -> str:
        """Put a device that is there from the start into the next slot, one that was plugged in where it was."""
        if name in self._places:
            place, self.devices[name].bdf = self._places[name]
            if "port" in place:
                self._port_of[name] = int(place.removeprefix("bus=port"))
                self._free_ports.remove(self._port_of[name])
            return str(place)
        bdf = f"0000:00:{self._slot:02x}.0"
        self.devices.setdefault(name, Device(name=name, qid="")).bdf = bdf
        place = f"addr={self._slot:#x}"
        self._slot += 1
        return place

    def _disk(self, config: Json) -> tuple[Device, list[Json], Json]:
        device = self._name("disk", config)
        device.disk = Disk(config, lock=self._lock_disks)
        self.devices[device.name] = device
        properties = {
            "driver": "virtio-blk-pci",
            "id": device.qid,
            "drive": device.qid,
            "num-queues": config["num_queues"],
            "queue-size": config["queue_size"],
            "werror": "report",
            "rerror": "report",
        }
        if "serial" in config:
            properties["serial"] = config["serial"]
        return device, device.disk.nodes(device.qid), properties

    def _net(self, config: Json) -> tuple[Device, Json, Json]:
        device = self._name("net", config)
        if "rate_limiter_config" in config:
            raise not_emulated(f"a rate limiter, as of the network device {device.name}")
        device.fds = open_tap(config)
        self.devices[device.name] = device
        properties: Json = {
            "driver": "virtio-net-pci",
            "id": device.qid,
            "netdev": f"{device.qid}-net",
            "mac": config["mac"],
            "romfile": "",
        }
        if "mtu" in config:
            properties["host_mtu"] = config["mtu"]
        if len(device.fds) > 1:
            properties |= {"mq": True, "vectors": 2 * len(device.fds) + 2}
        return device, {"type": "tap", "id": f"{device.qid}-net", "vhost": False}, properties

    def add_disk(self, config: Json) -> Json:
        """Plug in a disk; return its id and PCI address."""
        device, nodes, properties = self._disk(config)
        done: list[str] = []
        try:
            for node in nodes:
                self.qmp.command("blockdev-add", **node)
                done.append(node["node-name"])
            return self._plug(device, properties)
        except (QmpError, Refused) as error:
            for name in reversed(done):
                self.qmp.command("blockdev-del", **{"node-name": name})
            raise self._unplugged_again(device, error) from error

    def add_net(self, config: Json) -> Json:
        """Plug in a network device; return its id and PCI address."""
        device, backend, properties = self._net(config)
        names = [f"{device.qid}-fd{number}" for number in range(len(device.fds))]
        try:
            for name, fd in zip(names, device.fds, strict=True):
                self.qmp.command_with_fds("getfd", [fd], fdname=name)
            self.qmp.command("netdev_add", **backend, **{fds_name(device.fds): ":".join(names)})
            return self._plug(device, properties)
        except (QmpError, Refused) as error:
            raise self._unplugged_again(device, error) from error

    def add_vsock(self, config: Json) -> Json:
        """Take a vsock device, of which the guest sees nothing; return its id and a PCI address."""
        device = self._name("vsock", config)
        self.devices[device.name] = device
        self._place(device.name)
        return {"id": device.name, "bdf": device.bdf}

    def _unplugged_again(self, device: Device, error: Exception) -> Refused:
        self.devices.pop(device.name, None)
        device.close()
        return error if isinstance(error, Refused) else Refused("Error from device manager", str(error))

    def _plug(self, device: Device, properties: Json) -> Json:
        # The firmware numbers the buses in the order of their bridges, and there are no others.
        if self.tiny:
            self._slot += 1
            if self._slot > 31:
                raise not_emulated("a 30th device")
            place = {"bus": "hotplug", "addr": f"{self._slot:#x}"}
            device.bdf = f"0000:01:{self._slot:02x}.0"
        else:
            if not self._free_ports:
                raise not_emulated(f"more than {SPARE_PORTS} hot-plugged devices")
            port = self._free_ports.pop(0)
            self._port_of[device.name] = port
            place = {"bus": f"port{port}"}
            device.bdf = f"0000:{port + 1:02x}:00.0"
        try:
            self.qmp.command("device_add", **properties, **place)
        except QmpError:
            if device.name in self._port_of:
                self._free_ports.append(self._port_of.pop(device.name))
            raise
        self._places[device.name] = [",".join(f"{key}={value}" for key, value in place.items()), device.bdf]
        return {"id": device.name, "bdf": device.bdf}

    def remove(self, name: str) -> None:
        """Ask the guest to let go of a device. It keeps its id until the guest does; one without a driver never does."""
        device = self.devices.get(name)
        if device is None or device.removing:
            raise Refused(
                "Error from device manager", f"Failed to find device corresponding to the given identifier: {name}"
            )
        if name == self.config.get("vsock", {}).get("id"):
            # A tiny guest lets go of nothing, and another has nothing to let go of.
            device.removing = self.tiny
            if not self.tiny:
                del self.devices[name]
            return
        if device.disk is None and not device.fds:
            raise Refused("Error from device manager", f"Not allowed to remove this type of device from the VM: {name}")
        if not self.tiny and name not in self._port_of:
            raise not_emulated(f"the removal of {name}, which was there when the guest booted,")
        device.removing = True
        if not self.tiny:
            self.qmp.command("device_del", id=device.qid)

    def resize_disk(self, name: str, size: int) -> None:
        """Change a disk's size, in bytes."""
        device = self.devices.get(name)
        if device is None or device.disk is None or device.removing:
            raise Refused(
                "Error from device manager", f"Failed to find device corresponding to the given identifier: {name}"
            )
        if size % 512:
            raise Refused("Error from device manager", "Disk resize error", "Disk image size is not a multiple of 512")
        if device.disk.is_based:
            raise Refused(
                *(
                    "Error from device manager",
                    "Disk resize error",
                    "Disk resize failed",
                    "Unsupported feature (op=resize)",
                ),
                *("Resize failed", "resize not supported with backing files"),
            )
        try:
            self.qmp.command("block_resize", **{"node-name": device.qid, "size": size})
        except QmpError as error:
            raise Refused("Error from device manager", "Disk resize error", "Disk resize failed", str(error)) from error

    # ---- vCPUs and memory ----

    def resize_cpus(self, wanted: int) -> None:
        """Plug or unplug vCPUs. A tiny payload cannot see them, so that only the number is kept."""
        if wanted == 0:
            raise Refused("Error from CPU manager", "Requested zero vCPUs")
        if wanted > self.config["cpus"]["max_vcpus"]:
            raise Refused("Error from CPU manager", "Requested vCPUs exceed maximum")
        if not self.tiny:
            slots = self.qmp.command("query-hotpluggable-cpus")
            free = [slot for slot in reversed(slots) if "qom-path" not in slot]
            used = [slot for slot in slots if "qom-path" in slot]
            for slot in free[: max(0, wanted - len(used))]:
                cpu = {"driver": slot["type"], "id": f"cpu{slots.index(slot)}", **slot["props"]}
                self.qmp.command("device_add", **cpu)
                self._plugged.append(["-device", joined(cpu)])
            if wanted < len(used):
                # QEMU 7.2 crashes when TCG's vCPU goes whose thread has run.
                raise not_emulated("fewer vCPUs than the guest has")
        self.config["cpus"]["boot_vcpus"] = wanted

    def resize_memory(self, wanted: int) -> None:
        """Plug memory in. Like the real VMM's ACPI method, it never takes any away from the running guest."""
        memory = self.config["memory"]
        if memory["hotplug_method"] != "Acpi":
            raise not_emulated("memory hot-plug by virtio-mem")
        more = wanted - self._memory
        if more > 0:
            if more % HOTPLUG_ALIGNMENT:
                raise Refused("Memory manager error", "The requested hotplug memory addition is not a valid size")
            if wanted - self._boot_memory > memory.get("hotplug_size", 0):
                raise Refused("Memory manager error", "Not enough space in the hotplug RAM region")
            if not self.tiny:
                name = f"mem{self._memory}"
                backend = {"qom-type": "memory-backend-ram", "id": name, "size": more}
                dimm = {"driver": "pc-dimm", "id": f"dimm-{name}", "memdev": name}
                try:
                    self.qmp.command("object-add", **backend)
                    self.qmp.command("device_add", **dimm)
                except QmpError as error:
                    raise Refused("Memory manager error", str(error)) from error
                self._plugged.append(["-object", joined(backend, first="qom-type"), "-device", joined(dimm)])
            self._memory = wanted
        memory["size"] = wanted  # for the next boot, whatever came of it now

    def resize_balloon(self, wanted: int) -> None:
        """Set the balloon's size, in bytes."""
        if "balloon" not in self.config:
            raise Refused("Error from device manager", "Missing virtio-balloon, can't proceed as expected")
        self.qmp.command("balloon", value=max(1, self._memory - wanted))
        self.config["balloon"]["size"] = wanted

    # ---- What is there ----

    def memory_size(self) -> int:
        """Return the memory that the guest has, in bytes."""
        return int(self.config["memory"]["size"]) - int(self.config.get("balloon", {}).get("size", 0))

    def tree(self) -> Json:
        """Return vm.info's device_tree."""
        nodes: Json = {name: {"id": name, "resources": [], "children": []} for name in ("__serial", "__ioapic")}
        for device in list(self.devices.values()):
            if device.bdf:
                parent = f"_virtio-pci-{device.name}"
                nodes[parent] = {"id": parent, "resources": [], "children": [device.name], "pci_bdf": device.bdf}
                nodes[device.name] = {"id": device.name, "resources": [], "parent": parent, "children": []}
        return nodes

    def counters(self) -> Json:
        """Return vm.counters' answer."""
        result: Json = {}
        blocks = {stats.get("node-name"): stats["stats"] for stats in self.qmp.command("query-blockstats")}
        for device in list(self.devices.values()):
            if device.disk is not None and device.qid in blocks:
                result[device.name] = counters.of_disk(blocks[device.qid])
            elif device.fds:
                result[device.name] = counters.of_net(self._tap_of(device.name))
        return result

    def _tap_of(self, name: str) -> str:
        return next((str(net["tap"]) for net in self.config["net"] if net.get("id") == name), "")

    # ---- To and from elsewhere ----

    def state(self) -> Json:
        """Return what another Guest needs, beside the configuration and the stream, to go on where this one is."""
        if any(device.removing for device in self.devices.values()):
            raise not_emulated("a snapshot or migration of a guest that has not let go of a removed device,")
        return {
            "number": self._number,
            "boot_cpus": self._boot_cpus,
            "boot_memory": self._boot_memory,
            "memory": self._memory,
            "plugged": self._plugged,
            "places": {name: place for name, place in self._places.items() if name in self.devices},
            "slot": self._slot,
        }

    def lock_disks(self, held: bool) -> None:
        """Take the locks of all disks, or give them back."""
        self._lock_disks = held
        for device in self.devices.values():
            if device.disk is not None:
                device.disk.lock(held)

    def go_on(self) -> None:
        """Let the vCPUs run, whatever stopped them."""
        self.qmp.command("cont")

    # ---- The end ----

    def stop(self) -> None:
        """End QEMU and give back what it used."""
        with contextlib.suppress(QmpError):
            self.qmp.command("quit")
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.qmp.close()
        for device in self.devices.values():
            device.close()
        self.devices.clear()
