# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line (cloud-hypervisor/src/main.rs)."""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import signal
import struct
import sys
import threading
from typing import Any

from . import config as model
from .disks import F_OFD_SETLK
from .errors import BadJson, Refused, os_error
from .events import Events
from .server import Server
from .vmm import RELEASE, Vmm

Json = dict[str, Any]
VERSION_LINE = f"cloud-hypervisor v{RELEASE} (qemu_vmm stand-in)"
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# Options with a value that change nothing here; the real VMM's other options are refused by name.
IGNORED = ("--seccomp", "--log-format", "--landlock-rules")


class Usage(Exception):
    """A command line that cannot be followed."""


def options(text: str) -> Json:
    """Read ``a=1,b=[x,y],c="d,e"``; a part without ``=`` has the value True."""
    parts = re.findall(r'(?:[^,"\[]|"[^"]*"|\[[^\]]*\])+', text)
    result: Json = {}
    for part in parts:
        name, equals, value = part.partition("=")
        result[name] = value.strip('"') if equals else True
    return result


def size(text: str) -> int:
    """Read a size in bytes, with a unit or not."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", text)
    if match is None:
        raise Usage(f"invalid size: {text}")
    return int(match[1]) * UNITS[match[2]]


def _on(text: str) -> bool:
    if text not in ("on", "off", "true", "false"):
        raise Usage(f"invalid switch: {text}")
    return text in ("on", "true")


def _list(text: str) -> list[str]:
    return [part.strip().strip('"') for part in text.strip("[]").split(",")]


TYPES: dict[str, Any] = (
    {name: size for name in ("size", "hotplug_size", "hotplugged_size", "hugepage_size")}
    | {name: int for name in ("num_queues", "queue_size", "cid", "mtu", "boot", "max", "max_phys_bits")}
    | {name: int for name in ("pci_segment", "pci_device_id", "num_pci_segments")}
    | {
        name: _on
        for name in (
            *("readonly", "direct", "iommu", "backing_files", "sparse", "mergeable", "shared", "hugepages", "nested"),
            *("prefault", "reserve", "thp", "deflate_on_oom", "free_page_reporting", "vhost_user"),
            *("offload_tso", "offload_ufo", "offload_csum", "iommufd", "vfio_p2p_dma", "kvm_hyperv"),
        )
    }
    | {"oem_strings": _list}
)
RENAMED = {"boot": "boot_vcpus", "max": "max_vcpus"}
IMAGE_TYPES = {"raw": "Raw", "qcow2": "Qcow2", "vhd": "FixedVhd", "vhdx": "Vhdx"}


def device(text: str) -> Json:
    """Read one device's options into its configuration."""
    result: Json = {}
    for name, value in options(text).items():
        if value is True:
            raise Usage(f"'{name}' needs a value, in '{text}'")
        result[RENAMED.get(name, name)] = TYPES.get(name, str)(value)
    if "image_type" in result:
        result["image_type"] = IMAGE_TYPES.get(result["image_type"], result["image_type"])
    if "hotplug_method" in result:
        result["hotplug_method"] = {"acpi": "Acpi", "virtio-mem": "VirtioMem"}[result["hotplug_method"]]
    return result


def console(text: str) -> Json:
    """Read ``off``, ``null``, ``pty``, ``tty``, ``file=PATH`` or ``socket=PATH``."""
    parts = options(text)
    for name in ("off", "null", "pty", "tty"):
        if parts.get(name) is True:
            return {"mode": name.capitalize()}
    for name in ("file", "socket"):
        if name in parts:
            return {"mode": name.capitalize(), name: parts[name]}
    raise Usage(f"invalid console: {text}")


def direct_boot(arguments: argparse.Namespace) -> Json | None:
    """Make a VmConfig of the options that boot a VM without the API."""
    payload = {name: getattr(arguments, name) for name in ("kernel", "firmware", "initramfs", "cmdline")}
    if not (payload["kernel"] or payload["firmware"]):
        return None
    cpus = device(arguments.cpus)
    cpus.setdefault("boot_vcpus", 1)
    cpus.setdefault("max_vcpus", cpus["boot_vcpus"])
    config: Json = {
        "payload": payload,
        "cpus": cpus,
        "memory": device(arguments.memory),
        "serial": console(arguments.serial),
        "console": console(arguments.console),
        "rng": device(arguments.rng),
        "watchdog": arguments.watchdog,
        "pvpanic": arguments.pvpanic,
    }
    for name, given in (("disks", arguments.disk), ("net", arguments.net)):
        if given:
            config[name] = [device(text) for text in given]
    for name in ("balloon", "vsock", "platform"):
        if getattr(arguments, name):
            config[name] = device(getattr(arguments, name))
    return dict(model.vm(config))


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    result = argparse.ArgumentParser(prog="cloud-hypervisor", description="Launch a cloud-hypervisor VMM (stand-in).")
    result.add_argument("-V", "--version", action="version", version=VERSION_LINE)
    result.add_argument("-v", action="count", default=0, help="accepted, without effect")
    result.add_argument("--api-socket", help="path=<path>, <path> or fd=<fd>")
    result.add_argument("--event-monitor", help="path=<path> or fd=<fd>")
    result.add_argument("--log-file", help="log file, instead of standard error")
    result.add_argument("--no-shutdown", action="store_true", help="stay when the guest shuts down")
    result.add_argument("--landlock", action="store_true", help="accepted, without effect")
    for name in IGNORED:
        result.add_argument(name, nargs="+" if name == "--landlock-rules" else None, help="accepted, without effect")
    for name in ("--kernel", "--firmware", "--initramfs", "--cmdline", "--balloon", "--vsock", "--platform"):
        result.add_argument(name)
    result.add_argument("--cpus", default="boot=1")
    result.add_argument("--memory", default="size=512M")
    result.add_argument("--serial", default="null")
    result.add_argument("--console", default="tty")
    result.add_argument("--rng", default="src=/dev/urandom")
    for name in ("--disk", "--net"):
        result.add_argument(name, nargs="+", action="extend")
    for name in ("--watchdog", "--pvpanic"):
        result.add_argument(name, action="store_true")
    return result


def _path_or_fd(text: str | None, option: str) -> tuple[str | None, int | None]:
    if text is None:
        return None, None
    parts = options(text)
    if "fd" in parts:
        return None, int(parts["fd"])
    if "path" in parts:
        return str(parts["path"]), None
    if option == "--api-socket" and "=" not in text:
        return text, None
    raise Usage(f"{option}: expected path=<path> or fd=<fd>, got '{text}'")


def _lock(path: str) -> int:
    """Hold PATH.lock while this VMM listens at PATH, as the real one does."""
    try:
        fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Refused(
            "Failed to start the VMM thread", "Error creation API server's socket", os_error(error)
        ) from error
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("=hhxxxxqqixxxx", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        raise Refused(
            "Failed to start the VMM thread", f'API socket "{path}" is already in use by another running instance'
        ) from error
    return fd


def _end_on_signals(vmm: Vmm) -> None:
    """End the VMM on SIGTERM and SIGINT.

    A thread waits for them: a handler in Python would run only once the main thread, which waits for calls, wakes up.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)

    def wait() -> None:
        os.read(woken, 1)
        vmm.terminate()

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Run the VMM; return its exit status."""
    arguments = parser().parse_args()
    os.umask(0o077)
    try:
        return run(arguments)
    except (Usage, BadJson, Refused, OSError, ValueError) as error:
        causes = error.causes if isinstance(error, Refused) else [str(error)]
        print("Error: Cloud Hypervisor exited with the following chain of errors:", file=sys.stderr)
        for number, cause in enumerate(causes):
            print(f"  {number}: {cause}", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace) -> int:
    """Set everything up and run until the VMM ends."""
    if arguments.log_file:
        log = os.open(arguments.log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(log, 2)
    if shutil.which("qemu-system-x86_64") is None and "QEMU_VMM_QEMU" not in os.environ:
        raise Usage("the qemu_vmm stand-in needs qemu-system-x86_64 on PATH")
    event_path, event_fd = _path_or_fd(arguments.event_monitor, "--event-monitor")
    if event_path is not None:
        event_fd = os.open(event_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    path, fd = _path_or_fd(arguments.api_socket, "--api-socket")
    config = direct_boot(arguments)
    if config is None and path is None and fd is None:
        raise Usage("neither an API socket nor a payload is given: use --api-socket, or --kernel")
    vmm = Vmm(Events(event_fd), keep_after_shutdown=arguments.no_shutdown)
    _end_on_signals(vmm)
    if path is not None:
        _lock(path)
    server = Server(vmm, path, fd) if path is not None or fd is not None else None
    if config is not None:
        vmm.create(config)
        vmm.boot()
    if server is not None:
        server.start()
    status = vmm.run()
    if server is not None:
        server.finish()
    return status
