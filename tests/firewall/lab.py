# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host in a network namespace, all of whose links are TAPs that the test holds: it is the VMs, and the world outside.

A frame that is written to a TAP goes through the kernel before the write returns, and what comes out of it can be read at
once: nothing has to be waited for, and hundreds of packets take milliseconds.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import Completed, HostRunner

# linux/if_tun.h
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_Made = TypeVar("_Made")
# The host's, on each link.
HOST_MAC = "02:00:00:00:00:ff"


@dataclass(frozen=True)
class Link:
    """A link of the host: its name, the host's addresses with their prefixes, and who is on the other side."""

    name: str
    addresses: tuple[str, ...]
    mac: str
    neighbours: tuple[str, ...]


class Lab:
    """The host, and the file descriptors of its links. ``runner`` runs commands in it."""

    def __init__(
        self, namespace: str, links: Iterable[Link], settings: Iterable[str], routes: Iterable[Sequence[str]]
    ) -> None:
        self.namespace = namespace
        self.links = {link.name: link for link in links}
        self._stack = ExitStack()
        with ExitStack() as undo:
            subprocess.run(["ip", "netns", "delete", namespace], check=False, stderr=subprocess.DEVNULL)
            subprocess.run(["ip", "netns", "add", namespace], check=True)
            undo.callback(subprocess.run, ["ip", "netns", "delete", namespace], check=True)
            self.runner = _In(namespace)
            for setting in settings:
                self.runner.run(["sysctl", "-q", "-w", setting])
            self.taps = {name: self.inside(_tap, name) for name in self.links}
            for tap in self.taps.values():
                undo.callback(os.close, tap)
            self._configure(routes)
            self.sockets = {
                (version, kind): self.inside(socket.socket, version, socket.SOCK_RAW, kind)
                for version in (socket.AF_INET, socket.AF_INET6)
                for kind in (
                    socket.IPPROTO_UDP,
                    socket.IPPROTO_TCP,
                    socket.IPPROTO_ICMP if version == socket.AF_INET else socket.IPPROTO_ICMPV6,
                )
            }
            self.senders = {
                4: self.inside(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
                6: self.inside(socket.socket, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW),
            }
            for made in (*self.sockets.values(), *self.senders.values()):
                undo.callback(made.close)
            self._stack = undo.pop_all()

    def _configure(self, routes: Iterable[Sequence[str]]) -> None:
        lines = ["link set lo up"]
        for link in self.links.values():
            lines.append(f"link set {link.name} address {HOST_MAC} up")
            lines += [
                f"address add {address} dev {link.name}" + " nodad" * (":" in address) for address in link.addresses
            ]
            lines += [
                f"neighbour replace {address} lladdr {link.mac} dev {link.name} nud permanent"
                for address in link.neighbours
            ]
        lines += [" ".join(route) for route in routes]
        self.runner.run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")

    def close(self) -> None:
        """Leave nothing."""
        self._stack.close()

    def inside(self, work: Callable[..., _Made], *arguments: Any) -> _Made:
        """Call ``work`` in the host's namespace; what it opens stays there."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        try:
            _enter(there)
            return work(*arguments)
        finally:
            _enter(home)
            os.close(home)
            os.close(there)

    def send(self, link: str, frame: bytes) -> None:
        """Send a frame to the host through a link."""
        os.write(self.taps[link], frame)

    def send_from_host(self, packet: bytes, link: str | None = None) -> None:
        """Have the host itself send an IP packet, through ``link`` where its address does not tell."""
        index = 0 if link is None else self.inside(socket.if_nametoindex, link)
        with suppress(PermissionError):  # how the kernel tells that the firewall dropped it
            if packet[0] >> 4 == 4:
                self.senders[4].sendto(packet, (socket.inet_ntop(socket.AF_INET, packet[16:20]), 0))
            else:
                self.senders[6].sendto(packet, (socket.inet_ntop(socket.AF_INET6, packet[24:40]), 0, 0, index))

    def received(self) -> Iterator[tuple[str, bytes]]:
        """Yield what has come out since the last time: a link and a frame, or "host" and what the host itself got."""
        for name, tap in self.taps.items():
            for frame in _drained(lambda tap=tap: os.read(tap, 65536)):  # type: ignore[misc]
                yield name, frame
        for made in self.sockets.values():
            for packet in _drained(lambda made=made: made.recv(65536, socket.MSG_DONTWAIT)):  # type: ignore[misc]
                yield "host", packet

    def forget_connections(self) -> None:
        """Have the kernel forget all connections (IPCTNL_MSG_CT_DELETE of linux/netfilter/nfnetlink_conntrack.h)."""

        def flush() -> None:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
                # nlmsghdr: length, type, NLM_F_REQUEST | NLM_F_ACK, sequence, port; nfgenmsg: family, version, id
                netlink.send(struct.pack("=IHHIIBBH", 20, (1 << 8) | 2, 5, 1, 0, 0, 0, 0))
                error = struct.unpack_from("=i", netlink.recv(100), 16)[0]
                assert error == 0, os.strerror(-error)

        self.inside(flush)


class _In:
    """Runs commands in a namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        return HostRunner().run(["ip", "netns", "exec", self.namespace, *argv], **options)


def _enter(namespace: int) -> None:
    if _LIBC.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return tap


def _drained(read: Callable[[], _Made]) -> Iterator[_Made]:
    while True:
        try:
            yield read()
        except BlockingIOError:
            return
