# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packets and cases of them: to put together, to send, and to see where they come out."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lab import HOST_MAC, Lab
from world import ADDRESSES, GATEWAYS, LINKS, MACS

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw


@dataclass(frozen=True)
class Seen:
    """Where a packet came out: "host" or a link; there, its addresses and the port that it is for, if it says."""

    place: str
    source: str = ""
    target: str = ""
    port: int | None = None


@dataclass
class Step:
    """Frames that make one packet, who sends them, the protocol, a mark to know the packet by, and where it comes out."""

    sender: str
    frames: list[bytes]
    protocol: int
    tag: bytes
    seen: frozenset[Seen]
    link: str | None = None


@dataclass
class Case:
    """Some packets in a row, the later of which may belong to a connection of the earlier."""

    why: str
    steps: list[Step] = field(default_factory=list)


_numbers = itertools.count(1)
IP_CLASS = {4: IP, 6: IPv6}


def new_tag() -> tuple[int, bytes]:
    number = next(_numbers)
    return 20000 + number, f"<packet {number:6d}>".encode()


def step(
    sender: str,
    version: int,
    body: Packet,
    tag: bytes,
    seen: Seen | None,
    *,
    source: str,
    target: str,
    mac: str | None,
    **ip: Any,
) -> Step:
    """Put a packet together, and around it the sender's frame."""
    packet = IP_CLASS[version](src=source, dst=target, **ip) / body
    protocol = packet.proto if version == 4 else packet.payload.nh if packet.nh == 44 else packet.nh
    frame = packet if sender == "host" else Ether(src=mac or MACS[sender], dst=HOST_MAC) / packet
    return Step(sender, [bytes(frame)], protocol, tag, frozenset() if seen is None else frozenset({seen}))


def _body(version: int, what: str, sport: int, tag: bytes) -> Packet:
    kind, _space, port = what.partition(" ")
    if kind == "udp":
        return UDP(sport=sport, dport=int(port)) / Raw(tag)
    if kind == "icmp":
        return ICMP(id=sport) / Raw(tag) if version == 4 else ICMPv6EchoRequest(id=sport, data=tag)
    flags = {"tcp": "S", "invalid": "SRF"}[kind]
    return TCP(sport=sport, dport=int(port), flags=flags) / Raw(tag)


def row(
    why: str,
    sender: str,
    target: str,
    what: str = "udp 7000",
    seen: str | None = None,
    *,
    source: str | None = None,
    mac: str | None = None,
    as_host: bool = False,
    at: tuple[str, int] | None = None,
    versions: tuple[int, ...] = (4, 6),
    answered: bool = False,
) -> Iterator[Case]:
    """Yield a packet in each family from ``sender`` to the address of ``target``, with the ``source``'s address.

    It comes out at ``seen``, with the host's address where ``as_host``, on the way to ``at`` where its target has changed.
    ``answered`` adds the packet back, which comes out where the first one came from, with the addresses turned round.
    """
    for version in versions:
        sport, tag = new_tag()
        gateway = target.removesuffix("'s gateway")
        targets = ADDRESSES[target] if target == gateway else GATEWAYS[gateway]
        addresses = {"source": ADDRESSES[source or sender][version], "target": targets[version]}
        body = _body(version, what, sport, tag)
        port = getattr(body, "dport", None)
        there = None
        if seen is not None:
            source_seen = ADDRESSES["host"][version] if as_host else addresses["source"]
            target_seen, port_seen = (ADDRESSES[at[0]][version], at[1]) if at else (addresses["target"], port)
            there = Seen("host") if seen == "host" else Seen(LINKS[seen], source_seen, target_seen, port_seen)
        case = Case(f"IPv{version}, {what}: {why}", [step(sender, version, body, tag, there, mac=mac, **addresses)])
        if answered:
            assert there is not None and seen is not None
            tag = new_tag()[1]
            back = (TCP(flags="SA") if what.startswith("tcp") else UDP()) / Raw(tag)
            back.sport, back.dport = (there.port or port), sport
            came_from = (
                Seen("host")
                if sender == "host"
                else Seen(LINKS[sender], addresses["target"], addresses["source"], sport)
            )
            case.steps.append(
                step(
                    seen,
                    version,
                    back,
                    tag,
                    came_from,
                    source=there.target or addresses["target"],
                    target=there.source or addresses["source"],
                    mac=None,
                )
            )
        yield case


def observe(lab: Lab, cases: Iterable[Case]) -> list[frozenset[Seen]]:
    """Send all packets of all cases, and return where each came out."""
    found = []
    for made in (made for case in cases for made in case.steps):
        for frame in made.frames:
            if made.sender == "host":
                lab.send_from_host(frame, made.link)
            else:
                lab.send(LINKS[made.sender], frame)
        found.append(
            frozenset(
                seen for place, packet in lab.received() if (seen := _seen(place, packet, made.protocol, made.tag))
            )
        )
    return found


@cache
def _seen(place: str, packet: bytes, protocol: int, tag: bytes) -> Seen | None:
    if protocol == 0x0806:
        answer = Ether(packet)
        return Seen(place, answer.psrc, answer.pdst) if ARP in answer and answer[ARP].op == 2 else None
    if tag not in packet:
        return None
    if place == "host":
        return Seen(place)
    outer = Ether(packet).payload
    body = outer[IPv6ExtHdrFragment].payload if IPv6ExtHdrFragment in outer else outer.payload
    fragmented = IPv6ExtHdrFragment in outer or (IP in outer and bool(outer.flags.MF or outer.frag))
    # The kernel's own answers are not the packet: that a port is closed, an echo.
    echo = (isinstance(body, ICMP) and body.type == 0) or isinstance(body, ICMPv6EchoReply)
    found = body.underlayer.nh if isinstance(body.underlayer, (IPv6, IPv6ExtHdrFragment)) else outer.proto
    if echo or found != protocol:
        return None
    return Seen(place, outer.src, outer.dst, body.dport if isinstance(body, (TCP, UDP)) and not fragmented else None)
