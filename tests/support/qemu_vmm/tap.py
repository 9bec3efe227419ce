# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""TAP devices: made, or taken as they are (net_util/src/open_tap.rs, tap.rs; linux/if_tun.h)."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from pathlib import Path
from typing import Any

from .errors import Refused, os_error

TUNSETIFF = 0x400454CA
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFMTU = 0x8916, 0x891C, 0x8922
SIOCGIFHWADDR, SIOCSIFHWADDR = 0x8927, 0x8924
IFF_UP, ARPHRD_ETHER = 1, 1
VNET_HEADER_SIZE = 12


def _failed(*causes: str) -> Refused:
    return Refused("Error from device manager", "Cannot create virtio-net device", "Failed to open taps", *causes)


def open_tap(net: dict[str, Any]) -> list[int]:
    """Open a descriptor for each queue pair of ``net``; fill in its ``tap`` and ``host_mac`` as the real VMM does."""
    name = net.get("tap")
    queues = net["num_queues"] // 2
    if name is not None and len(name.encode()) > 15:
        raise _failed("Open tap device failed", f"Interface name too long (max length is 15): {name}")
    exists = name is not None and Path("/sys/class/net", name).exists()
    if exists:
        flags = Path("/sys/class/net", str(name), "tun_flags")
        multiqueue = flags.exists() and bool(int(flags.read_text(), 16) & IFF_MULTI_QUEUE)
        if multiqueue and queues == 1:
            raise _failed("Error related to the multiqueue support (no support device side)")
        if flags.exists() and not multiqueue and queues > 1:
            raise _failed("Error related to the multiqueue support (no support TAP side)")
    with contextlib.ExitStack() as undo:
        fds: list[int] = []
        for _queue in range(queues):
            name, fd = _attach(name or "vmtap%d", multiqueue=queues > 1)
            undo.callback(os.close, fd)
            fds.append(fd)
        _configure(str(name), net, exists=exists)
        undo.pop_all()
    net["tap"] = str(name)
    return fds


def _attach(name: str, *, multiqueue: bool) -> tuple[str, int]:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _failed("Open tap device failed", "Couldn't open /dev/net/tun", os_error(error)) from error
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if multiqueue else 0)
    try:
        request = fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_SIZE))
    except OSError as error:
        os.close(fd)
        raise _failed("Open tap device failed", "Unable to configure tap interface", os_error(error)) from error
    return request[:16].rstrip(b"\0").decode(), fd


def _configure(name: str, net: dict[str, Any], *, exists: bool) -> None:
    def ask(call: int, argument: bytes = b"") -> bytes:
        return fcntl.ioctl(control, call, struct.pack("16s24s", name.encode(), argument))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            if not exists and "ip" in net:
                _set_address(name, net["ip"], net["mask"])
            mac = ask(SIOCGIFHWADDR)[18:24]
            if net.setdefault("host_mac", mac.hex(":")) != mac.hex(":"):
                ask(SIOCSIFHWADDR, struct.pack("=H6s", ARPHRD_ETHER, bytes.fromhex(net["host_mac"].replace(":", ""))))
            if "mtu" in net:
                ask(SIOCSIFMTU, struct.pack("=i", net["mtu"]))
            (flags,) = struct.unpack_from("=H", ask(SIOCGIFFLAGS), 16)
            if not flags & IFF_UP:
                ask(SIOCSIFFLAGS, struct.pack("=H", flags | IFF_UP))
        except OSError as error:
            raise _failed("Unable to configure tap interface", os_error(error)) from error


def _set_address(name: str, ip: str, mask: str) -> None:
    address = ipaddress.ip_address(ip)
    if address.version == 6:
        prefix = int(ipaddress.IPv6Address(mask)).bit_count()
        request = struct.pack("=16sIi", address.packed, prefix, socket.if_nametoindex(name))
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, SIOCSIFADDR, request)
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for call, value in ((SIOCSIFADDR, ip), (SIOCSIFNETMASK, mask)):
            packed = struct.pack("=HH4s", socket.AF_INET, 0, ipaddress.IPv4Address(value).packed)
            fcntl.ioctl(control, call, struct.pack("16s24s", name.encode(), packed))
