# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a VM's options to the VmConfig that the VMM is told. Pure.

What is a property by itself is in the table (vm_properties.py); here is what takes more than one, and the defaults of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Any

from . import vm_checks, vsock_notify
from .errors import MicrovmError
from .names import check_vm_name
from .sizes import parse_size
from .tap import Tap, check_name
from .vm_devices import IMAGE_TYPES
from .vm_paths import Paths
from .vm_properties import VM
from .vm_schema import encoded
from .vmm_api import check_socket_path

DEFAULT_VMM = "cloud-hypervisor"
DEFAULT_GRACE = 30
DEFAULT_BOOT_TIMEOUT = 30
DEFAULT_MEMORY = "512MiB"
# The lists of devices, by their properties, and what their devices are called where they have no name.
DEVICES = {
    "disks": "disk",
    "net": "net",
    "fs": "fs",
    "pmem": "pmem",
    "devices": "device",
    "user_devices": "user_device",
    "vdpa": "vdpa",
    "generic_vhost_user": "generic_vhost_user",
}


@dataclass(frozen=True, slots=True)
class Spec:
    """What is asked for: the VmConfig, the TAPs to be made beforehand, and how the VM is run.

    ``sizes`` are the disks' in bytes, by their ids, where they are asked for.
    """

    config: dict[str, Any]
    taps: tuple[Tap, ...]
    vmm: str = DEFAULT_VMM
    boot_timeout: float = DEFAULT_BOOT_TIMEOUT
    labels: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def files(self) -> dict[str, str]:
        """Return the files that the VMM opens, each by the option that names it."""
        return dict(_files(self.config))


def _files(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("kernel", "initramfs", "firmware", "igvm"):
        if key in config["payload"]:
            yield f"payload.{key}", config["payload"][key]
    for kind, key in (("disks", "path"), ("pmem", "file"), ("devices", "path"), ("vdpa", "path")):
        for device in config.get(kind, ()):
            if key in device:
                yield f"{kind}.{device['id']}", device[key]


def parse(options: Mapping[str, Any], paths: Paths) -> Spec:
    """Read one VM's options. Raises MicrovmError, naming the option, for what no VMM could be told."""
    check_vm_name(options["name"])
    for socket in (paths.api_socket, paths.vsock_socket, paths.serial_socket):
        check_socket_path(str(socket), option="run_dir")
    config = encoded(VM, options)
    _give_defaults(config)
    for disk, asked in zip(config["disks"], options.get("disks") or (), strict=True):
        _complete_disk(disk, asked)
    taps = [_tap(net, asked) for net, asked in zip(config["net"], options.get("nets") or (), strict=True)]
    config["serial"] = _port(config.get("serial", {}), "File", paths, option="serial")
    config["console"] = _port(config.get("console", {}), "Off", paths, option="console")
    if "debug_console" in config:
        config["debug_console"] = _port(config["debug_console"], "Off", paths, option="debug_console")
    if "vsock" in config:
        config["vsock"]["socket"] = str(paths.vsock_socket)
    if (options.get("wait_for") or {}).get("notify"):
        platform = config.setdefault("platform", {})
        platform["oem_strings"] = [*platform.get("oem_strings", ()), vsock_notify.credential()]
    vm_checks.check(config)
    timeout = options.get("boot_timeout")
    return Spec(
        config=config,
        taps=tuple(tap for tap in taps if tap is not None),
        vmm=options.get("vmm") or DEFAULT_VMM,
        boot_timeout=DEFAULT_BOOT_TIMEOUT if timeout is None else timeout,
        labels=options.get("labels") or {},
        sizes={
            disk["id"]: parse_size(asked["size"], option="disks.size")
            for disk, asked in zip(config["disks"], options.get("disks") or (), strict=True)
            if asked.get("size") is not None
        },
    )


def _give_defaults(config: dict[str, Any]) -> None:
    cpus = config.setdefault("cpus", {})
    cpus["boot_vcpus"] = cpus.get("boot_vcpus", 1)
    cpus.setdefault("max_vcpus", cpus["boot_vcpus"])
    memory = config.setdefault("memory", {})
    memory.setdefault("size", 0 if memory.get("zones") else parse_size(DEFAULT_MEMORY, option="memory.size"))
    config.setdefault("rng", {}).setdefault("src", "/dev/urandom")
    config.setdefault("payload", {})
    config.setdefault("watchdog", False)
    if "balloon" in config:
        config["balloon"].setdefault("size", 0)
    for kind in ("disks", "net"):
        config.setdefault(kind, [])
    for kind, name in DEVICES.items():
        for position, device in enumerate(config.get(kind, ())):
            device.setdefault("id", f"{name}{position}")
    # The API document wants these, though the VMM has defaults.
    for fs in config.get("fs", ()):
        fs.setdefault("num_queues", 1)
        fs.setdefault("queue_size", 1024)
    for vdpa in config.get("vdpa", ()):
        vdpa.setdefault("num_queues", 1)


def _complete_disk(disk: dict[str, Any], options: Mapping[str, Any]) -> None:
    if ("path" in disk) == ("vhost_socket" in disk):
        raise MicrovmError(f"the disk {disk['id']} takes either a path or a vhost_socket", option="disks.path")
    if "vhost_socket" in disk:
        disk["vhost_user"] = True
        return
    # Never probed: a guest could write the header of a format that names files of the host.
    ending = disk["path"].rpartition(".")[2]
    disk.setdefault("image_type", IMAGE_TYPES.get(ending, "Raw"))
    disk["readonly"] = bool(options.get("readonly"))
    if disk["image_type"] == "Qcow2":
        disk["backing_files"] = bool(options.get("backing_files"))
    else:
        disk.pop("backing_files", None)


def _tap(net: dict[str, Any], options: Mapping[str, Any]) -> Tap | None:
    """Return the NIC's TAP, and leave to it what the VMM would need a capability for (net_util/src/open_tap.rs)."""
    if ("tap" in net) == ("vhost_socket" in net):
        raise MicrovmError(f"the NIC {net['id']} takes either a tap or a vhost_socket", option="nets.tap")
    if "vhost_socket" in net:
        net["vhost_user"] = True
        return None
    addresses = []
    for address, prefix in (("host_address", "prefix"), ("host_address6", "prefix6")):
        if options.get(address) is not None:
            text = f"{options[address]}/{options.get(prefix)}"
            try:
                addresses.append(str(ip_interface(text)))
            except ValueError as error:
                raise MicrovmError(
                    f"{text!r} is not an address with a prefix; give {address} and {prefix}", option=f"nets.{address}"
                ) from error
    return Tap(
        check_name(net["tap"]),
        tuple(addresses),
        multi_queue=net.get("num_queues", 2) > 2,
        mtu=net.pop("mtu", None),
        mac=net.pop("host_mac", None),
    )


def _port(port: dict[str, Any], default: str, paths: Paths, *, option: str) -> dict[str, Any]:
    port.setdefault("mode", default)
    if port["mode"] != "File":
        port.pop("file", None)
    elif "file" not in port:
        if option != "serial":
            raise MicrovmError("is missing for the mode file", option=f"{option}.file")
        port["file"] = str(paths.serial_log)
    if port["mode"] == "Socket":
        if option != "serial":
            raise MicrovmError("only the serial port can be a socket", option=f"{option}.mode")
        port["socket"] = str(paths.serial_socket)
    return port
