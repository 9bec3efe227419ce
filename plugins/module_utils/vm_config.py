# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a VM's options to the VmConfig that the VMM is told. Pure.

Facts from Cloud Hypervisor's API document, schema VmConfig and those below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Any

from . import vsock_notify
from .addressing import FIRST_CID, LAST_CID, parse_mac
from .errors import MicrovmError
from .names import check_vm_name
from .sizes import parse_size
from .tap import Tap, check_name
from .vm_paths import Paths
from .vmm_api import check_socket_path

DEFAULT_VMM = "cloud-hypervisor"
DEFAULT_GRACE = 30
DEFAULT_BOOT_TIMEOUT = 30
DEFAULT_MEMORY = "512MiB"
_CONSOLE_MODES = {"file": "File", "pty": "Pty", "socket": "Socket", "null": "Null", "off": "Off"}
_IMAGE_TYPES = {"raw": "Raw", "qcow2": "Qcow2"}
# VIRTIO_BLK_ID_BYTES (virtio 1.2, 5.2.6)
_MAX_SERIAL = 20


@dataclass(frozen=True, slots=True)
class Spec:
    """What is asked for: the VmConfig, the TAPs to be made beforehand, and how the VM is run."""

    config: dict[str, Any]
    taps: tuple[Tap, ...]
    vmm: str = DEFAULT_VMM
    boot_timeout: float = DEFAULT_BOOT_TIMEOUT
    labels: Mapping[str, Any] = field(default_factory=dict)

    def files(self) -> dict[str, str]:
        """Return the files that the VMM opens, each by the option that names it."""
        payload = {f"payload.{key}": path for key, path in self.config["payload"].items() if key != "cmdline"}
        disks = {f"disks.{disk['id']}": str(disk["path"]) for disk in self.config["disks"]}
        return {**payload, **disks}


def parse(options: Mapping[str, Any], paths: Paths) -> Spec:
    """Read one VM's options. Raises MicrovmError, naming the option, for what no VMM could be told."""
    check_vm_name(options["name"])
    for socket in (paths.api_socket, paths.vsock_socket, paths.serial_socket):
        check_socket_path(str(socket), option="run_dir")
    nets = [_net(net, index) for index, net in enumerate(options.get("nets") or ())]
    config: dict[str, Any] = {
        "cpus": _cpus(options.get("cpus") or {}),
        "memory": _memory(options.get("memory") or {}),
        "payload": _payload(options.get("payload") or {}),
        "disks": _disks(options.get("disks") or ()),
        "net": [net for net, _tap in nets],
        "serial": _console(options.get("serial") or {}, "file", paths, option="serial"),
        "console": _console(options.get("console") or {}, "off", paths, option="console"),
        "rng": {"src": (options.get("rng") or {}).get("src") or "/dev/urandom"},
        "watchdog": bool(options.get("watchdog")),
    }
    _refuse_shared(
        [disk["id"] for disk in config["disks"]] + [net["id"] for net in config["net"]], "id", "disks or nets"
    )
    _refuse_shared([disk["path"] for disk in config["disks"]], "path", "disks")
    _refuse_shared([net["tap"] for net in config["net"]], "TAP", "nets")
    if options.get("vsock"):
        config["vsock"] = _vsock(options["vsock"], paths)
    platform = _given(options.get("platform") or {}, "serial_number", "uuid", "oem_strings")
    if (options.get("wait_for") or {}).get("notify"):
        platform["oem_strings"] = [*platform.get("oem_strings", ()), vsock_notify.credential()]
    if platform:
        config["platform"] = platform
    timeout = options.get("boot_timeout")
    return Spec(
        config=config,
        taps=tuple(tap for _net_config, tap in nets),
        vmm=options.get("vmm") or DEFAULT_VMM,
        boot_timeout=DEFAULT_BOOT_TIMEOUT if timeout is None else timeout,
        labels=options.get("labels") or {},
    )


def _given(options: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: options[key] for key in keys if options.get(key) is not None}


def _refuse_shared(values: Sequence[str], what: str, option: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise MicrovmError(f"the {what} {value!r} stands twice; each has one of its own", option=option)


def _cpus(options: Mapping[str, Any]) -> dict[str, Any]:
    boot = options.get("boot") or 1
    most = options.get("max") or boot
    if not 1 <= boot <= most:
        raise MicrovmError(f"boot is {boot} and max is {most}; it takes 1 <= boot <= max", option="cpus")
    return {"boot_vcpus": boot, "max_vcpus": most}


def _memory(options: Mapping[str, Any]) -> dict[str, Any]:
    size = parse_size(options.get("size") or DEFAULT_MEMORY, option="memory.size")
    if size < 1 << 20 or size % 4096:
        raise MicrovmError(
            f"{size} bytes are asked for; give at least 1MiB, in pages of 4096 bytes", option="memory.size"
        )
    memory: dict[str, Any] = {"size": size, **_given(options, "shared", "hugepages", "mergeable")}
    if options.get("hotplug_size") is not None:
        memory["hotplug_size"] = parse_size(options["hotplug_size"], option="memory.hotplug_size")
    return memory


def _payload(options: Mapping[str, Any]) -> dict[str, Any]:
    payload = _given(options, "kernel", "initramfs", "cmdline", "firmware")
    if ("kernel" in payload) == ("firmware" in payload):
        raise MicrovmError("give either a kernel or a firmware for the VM to boot", option="payload")
    if "firmware" in payload and len(payload) > 1:
        raise MicrovmError("a firmware finds kernel, initramfs and cmdline itself; leave them out", option="payload")
    return payload


def _disks(disks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    result = []
    for index, options in enumerate(disks):
        path = options.get("path")
        if path is None:
            raise MicrovmError(f"disk {index} has no path", option="disks.path")
        image_type = options.get("image_type") or ("qcow2" if path.endswith(".qcow2") else "raw")
        disk: dict[str, Any] = {
            "id": options.get("id") or f"disk{index}",
            "path": path,
            # Never probed: a guest could write the header of a format that names files of the host.
            "image_type": _IMAGE_TYPES[image_type],
            "readonly": bool(options.get("readonly")),
        }
        if image_type == "qcow2":
            disk["backing_files"] = bool(options.get("backing_files"))
        if options.get("serial") is not None:
            if len(options["serial"].encode()) > _MAX_SERIAL:
                raise MicrovmError(f"{options['serial']!r} has more than {_MAX_SERIAL} bytes", option="disks.serial")
            disk["serial"] = options["serial"]
        result.append(disk)
    return result


def _net(options: Mapping[str, Any], index: int) -> tuple[dict[str, Any], Tap]:
    if options.get("tap") is None:
        raise MicrovmError(f"NIC {index} has no tap", option="nets.tap")
    name = check_name(options["tap"])
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
    net: dict[str, Any] = {"id": options.get("id") or f"net{index}", "tap": name}
    if options.get("mac") is not None:
        net["mac"] = parse_mac(options["mac"])
    return net, Tap(name, tuple(addresses))


def _console(options: Mapping[str, Any], default: str, paths: Paths, *, option: str) -> dict[str, Any]:
    mode = options.get("mode") or default
    if option == "console" and mode == "socket":
        raise MicrovmError("only the serial port can be a socket", option="console.mode")
    console: dict[str, Any] = {"mode": _CONSOLE_MODES[mode]}
    if mode == "file":
        file = options.get("file") or (str(paths.serial_log) if option == "serial" else None)
        if file is None:
            raise MicrovmError("is missing for the mode file", option=f"{option}.file")
        console["file"] = file
    elif mode == "socket":
        console["socket"] = str(paths.serial_socket)
    return console


def _vsock(options: Mapping[str, Any], paths: Paths) -> dict[str, Any]:
    cid = options.get("cid")
    if cid is None or not FIRST_CID <= cid <= LAST_CID:
        raise MicrovmError(f"{cid!r} is not a guest's context id; use {FIRST_CID} to {LAST_CID}", option="vsock.cid")
    return {"cid": cid, "socket": str(paths.vsock_socket)}
