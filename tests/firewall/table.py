# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packets, and where each comes out, if anywhere: what the firewall promises."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from lab import HOST_MAC
from packets import IP_CLASS, Case, Seen, Step, new_tag, row, step
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6MLReport,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    IPv6,
    IPv6ExtHdrFragment,
    fragment6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from world import ADDRESSES, GATEWAYS, LINKS, MACS


def rows() -> Iterator[Case]:
    """Yield who reaches whom."""
    for what in ("udp 7000", "tcp 7000", "icmp"):
        yield from row("a VM reaches outside as the host", "one", "out", what, "out", as_host=True)
        yield from row("and beyond", "one", "elsewhere", what, "out", as_host=True)
        yield from row("nothing reaches a VM from outside", "out", "one", what)
        yield from row("nor from another network", "lan", "one", what)
        yield from row("a VM does not reach another", "one", "ten", what)
        yield from row("nor the other way round", "ten", "one", what)
        yield from row("nor its host", "one", "one's gateway", what)
        yield from row("nor its host by another address", "one", "host", what)
        yield from row("nor another network of the host", "one", "lan", what)
        yield from row("nor where private networks are asked for", "private", "lan", what)
        yield from row("the host reaches a VM", "host", "one", what, "one")
        yield from row("the host reaches outside", "host", "out", what, "out")
        yield from row("whoever is outside reaches the host", "out", "host", what, "host")
        yield from row("what is no VM's passes", "out", "lan", what, "lan")
        yield from row("both ways", "lan", "out", what, "out")
    for what in ("udp 7000", "tcp 7000"):
        yield from row("outside answers", "one", "out", what, "out", as_host=True, answered=True)
        yield from row("a VM answers the host", "host", "one", what, "one", answered=True)
    yield from row(
        "a public address goes out as it is", "public", "out", "udp 7000", "out", versions=(6,), answered=True
    )
    yield from row("and is closed all the same", "out", "public", versions=(6,))
    # ---- Egress ----
    yield from row("not to private networks", "one", "corporate")
    yield from row("nor to the clouds' metadata", "one", "metadata", "tcp 80")
    yield from row("unless asked for", "private", "corporate", "udp 7000", "out", as_host=True)
    yield from row("unless asked for", "private", "metadata", "tcp 80", "out", as_host=True)
    yield from row("none is none", "ten", "elsewhere")
    yield from row("none is none", "ten", "out", "tcp 443")
    yield from row("but what is asked for", "ten", "anywhere", "udp 7000", "out", as_host=True, answered=True)
    for port, passes in ((22, 4), (79, 0), (80, 46), (399, 46), (443, 46), (444, 4), (500, 4), (501, 0)):
        for version in (4, 6):
            open_there = str(version) in str(passes)
            yield from row(
                "by port",
                "ten",
                "corporate",
                f"tcp {port}",
                "out" if open_there else None,
                as_host=True,
                versions=(version,),
            )
    yield from row("by protocol", "ten", "corporate", "udp 80")
    # ---- Forwards ----
    for sender in ("out", "lan", "host"):
        for what in ("udp", "tcp"):
            yield from row("a forward", sender, "host", f"{what} 8000", "one", at=("one", 90), answered=True)
            yield from row("its range", sender, "host", f"{what} 8001", "one", at=("one", 91))
        yield from row("each port is a VM's or nobody's", sender, "host", "udp 8002", "host")
    yield from row("for some clients", "out", "host", "udp 8100", "one", at=("one", 8100))
    yield from row("not for others", "out", "host", "udp 8101", "host")
    yield from row("on one address", "out", "host", "udp 8200", "one", at=("one", 8200))
    yield from row("not on another", "out", "host", "udp 8201", "host")
    yield from row("on one address", "lan", "lan's gateway", "udp 8201", "one", at=("one", 8201))
    yield from row("the VM itself stays closed", "out", "one", "udp 90")
    yield from row("a forward is not for VMs", "ten", "host", "udp 8000")
    yield from row("nor for who has it", "one", "host", "udp 8000")
    yield from row("the loopback address stays the host's", "host", "loopback", "udp 8000", "host")
    yield from row("what passes the host is left alone", "lan", "out", "udp 8000", "out")
    yield from row("what a VM sends is left alone", "one", "elsewhere", "udp 8000", "out", as_host=True)
    yield from row("what the host sends is left alone", "host", "out", "udp 8000", "out")
    # ---- The host ----
    yield from row("a service of the host", "one", "one's gateway", "udp 53", "host", answered=False)
    yield from row("its range", "one", "one's gateway", "udp 55", "host")
    yield from row("its range", "one", "one's gateway", "udp 56")
    yield from row("another protocol", "one", "one's gateway", "tcp 53")
    yield from row("another protocol", "one", "one's gateway", "tcp 443", "host")
    yield from row("another VM", "ten", "ten's gateway", "udp 53")
    # ---- Groups ----
    for what in ("udp 7000", "tcp 7000", "icmp"):
        yield from row("a group's VMs reach each other", "web1", "web2", what, "web2")
        yield from row("both ways", "web2", "web1", what, "web1")
        yield from row("nobody else does", "one", "web1", what)
        yield from row("and they nobody else", "web1", "one", what)
    yield from row("a group's VMs answer", "web1", "web2", "tcp 7001", "web2", answered=True)
    yield from row("who reaches groups reaches nobody else", "hub", "one")
    for number in range(1, 9):
        spoke = f"spoke{number}"
        yield from row("one way", "hub", spoke, "udp 7000", spoke, answered=True)
        yield from row("not the other", spoke, "hub", "udp 7001")
        yield from row("nor among them", spoke, f"spoke{number % 8 + 1}", "udp 7002")
    # ---- Forged ----
    for source in ("ten", "out", "elsewhere", "corporate"):
        yield from row("an address that is not its own", "one", "out", source=source)
        yield from row("nor to the host", "one", "one's gateway", "udp 53", source=source)
    yield from row("a MAC that is not its own", "one", "out", mac=MACS["ten"])
    yield from row("one of the same group", "web1", "web2", source="web2")
    yield from row("as one of the same group", "web2", "web1", source="web1")
    yield from row("both of another", "one", "out", source="ten", mac=MACS["ten"])
    yield from row("of no connection", "one", "out", "invalid 7000")
    yield from row("of no connection, to a VM", "out", "host", "invalid 8000", "host")


def rate_rows() -> Iterator[Case]:
    """Yield connections of which too many begin: the family that comes first has them."""
    for version in (4, 6):
        passes = version == 4
        for _time in range(3):
            yield from row("what is dropped anyway does not count", "out", "slow", versions=(version,))
        for _time in range(2):
            yield from row(
                "so many begin", "slow", "out", "udp 7000", "out" if passes else None, as_host=True, versions=(version,)
            )
            yield from row(
                "so many are let in",
                "out",
                "host",
                "udp 8300",
                "slow" if passes else None,
                at=("slow", 8300),
                versions=(version,),
            )
        yield from row("no more", "slow", "out", "udp 7000", versions=(version,))
        yield from row("no more, to the host either", "slow", "slow's gateway", "udp 53", versions=(version,))
        yield from row("no more are let in", "out", "host", "udp 8300", versions=(version,))
        yield from row("the host has no limit", "host", "slow", "udp 7000", "slow", versions=(version,), answered=True)


def related_rows() -> Iterator[Case]:
    """Yield errors about packets of a connection, which get through as those do, and about others, which do not."""
    for version in (4, 6):
        for known in (True, False):
            sport, tag = new_tag()
            own, host, out = (ADDRESSES[name][version] for name in ("one", "host", "out"))
            first = step(
                "one", version, UDP(sport=sport, dport=7000) / Raw(tag), tag, Seen("up0", host, out, 7000),
                source=own, target=out, mac=None,
            )  # fmt: skip
            tag = new_tag()[1]
            quoted = IP_CLASS[version](src=host, dst=out) / UDP(sport=sport if known else 9, dport=7000) / Raw(tag)
            error = ICMP(type=3, code=3) if version == 4 else ICMPv6DestUnreach(code=4)
            there = Seen(LINKS["one"], out, own) if known else Seen("host")
            second = step("out", version, error / quoted, tag, there, source=out, target=host, mac=None)
            yield Case(f"IPv{version}: an error about a packet of {'a' if known else 'no'} connection", [first, second])


def fragment_rows() -> Iterator[Case]:
    """Yield packets in fragments: the first alone has the ports, and none gets by."""
    for version in (4, 6):
        for source, target, seen in (("one", "out", True), ("ten", "out", False), ("one", "corporate", False)):
            sport, tag = new_tag()
            addresses = {"src": ADDRESSES[source][version], "dst": ADDRESSES[target][version]}
            body = UDP(sport=sport, dport=7000) / Raw(b"." * 2000 + tag)
            if version == 4:
                packets = fragment(IP(**addresses, id=sport) / body, 1000)
            else:
                packets = fragment6(IPv6(**addresses) / IPv6ExtHdrFragment(id=sport) / body, 1200)
            frames = [bytes(Ether(src=MACS[source], dst=HOST_MAC) / packet) for packet in packets]
            there = Seen("up0", ADDRESSES["host"][version], addresses["dst"], None)
            yield Case(
                f"IPv{version}: fragments from {source} to {target}",
                [Step(source, frames, socket.IPPROTO_UDP, tag, frozenset({there} if seen else ()))],
            )


def link_rows() -> Iterator[Case]:
    """Yield what is said on the link itself: ARP, neighbour discovery, and what only routers and DHCP servers say."""
    own, gateway, mac = ADDRESSES["one"], GATEWAYS["one"], MACS["one"]
    for why, sender, ether, address, passes in (
        ("its own addresses", "one", mac, own[4], True),
        ("a probe (RFC 5227)", "one", mac, "0.0.0.0", True),  # noqa: S104
        ("a probe with another's MAC", "one", MACS["ten"], "0.0.0.0", False),  # noqa: S104
        ("another's address", "one", mac, ADDRESSES["ten"][4], False),
        ("another's MAC", "one", MACS["ten"], own[4], False),
        ("no VM's", "out", MACS["out"], ADDRESSES["out"][4], True),
    ):
        asked = GATEWAYS[sender][4]
        frame = Ether(src=ether, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=ether, psrc=address, pdst=asked)
        answer = frozenset({Seen(LINKS[sender], asked, address)} if passes else ())
        yield Case(f"ARP: {why}", [Step(sender, [bytes(frame)], 0x0806, b"", answer)])

    def said(why: str, source: str, body: Packet, passes: bool, target: str = gateway[6], **frame: Any) -> Case:
        tag = new_tag()[1]
        seen = Seen("host") if passes else None
        made = step(
            "one", 6, body / _option(tag), tag, seen, source=source, target=target, mac=frame.get("mac"), hlim=255
        )
        return Case(f"ICMPv6: {why}", [made])

    solicit, advertise = ICMPv6ND_NS(tgt=gateway[6]), ICMPv6ND_NA(tgt=own[6])
    yield said("a neighbour asks", own[6], solicit, True)
    yield said("a neighbour answers", own[6], advertise, True)
    yield said("a neighbour asks from the link", "fe80::1", solicit, True)
    yield said("a neighbour probes", "::", ICMPv6ND_NS(tgt=own[6]), True, target="ff02::1")
    yield said("a forged neighbour", ADDRESSES["ten"][6], solicit, False)
    yield said("a forged neighbour's MAC", "fe80::1", solicit, False, mac=MACS["ten"])
    yield said("a router", own[6], ICMPv6ND_RA(), False)
    yield said("a router on the link", "fe80::1", ICMPv6ND_RA(), False)
    yield said("a router redirects", own[6], ICMPv6ND_Redirect(), False)
    yield said("a listener on the link, which counts for nothing", "fe80::1", ICMPv6MLReport(), False)
    tag = new_tag()[1]
    lookalike = TCP(sport=67, dport=7000) / Raw(tag)
    seen = Seen("up0", ADDRESSES["host"][4], ADDRESSES["out"][4], 7000)
    made = step("one", 4, lookalike, tag, seen, source=own[4], target=ADDRESSES["out"][4], mac=None)
    yield Case("IPv4: no DHCP server, whose port is of another protocol", [made])
    tag = new_tag()[1]
    redirect = ICMP(type=5, gw=own[4]) / IP(src=gateway[4], dst=ADDRESSES["out"][4]) / UDP() / Raw(tag)
    yield Case(
        "IPv4: a router redirects", [step("one", 4, redirect, tag, None, source=own[4], target=gateway[4], mac=None)]
    )
    for version, sport, dport in ((4, 67, 68), (6, 547, 546)):
        tag = new_tag()[1]
        offer = UDP(sport=sport, dport=dport) / Raw(tag)
        # Also where it may reach anything.
        for target in (GATEWAYS["one"][version], ADDRESSES["out"][version]):
            made = step("one", version, offer, tag, None, source=own[version], target=target, mac=None)
            yield Case(f"IPv{version}: a DHCP server", [made])
    # What the host says itself to all on a VM's link.
    address, all_nodes = ADDRESSES["one"][6], "ff02::1"
    for why, body, passes in (
        ("the host looks for a VM", ICMPv6ND_NS(tgt=address) / _option(tag := new_tag()[1]), True),
        ("the host talks to all", UDP(sport=5353, dport=5353) / Raw(tag2 := new_tag()[1]), False),
    ):
        known = tag if passes else tag2
        seen = Seen(LINKS["one"], gateway[6], all_nodes) if passes else None
        made = step("host", 6, body, known, seen, source=gateway[6], target=all_nodes, mac=None, hlim=255)
        made.link = LINKS["one"]
        yield Case(f"IPv6: {why}", [made])


def _option(tag: bytes) -> Raw:
    """Return an option that none knows (RFC 4861, section 4.6), to know the packet by."""
    return Raw(bytes([253, (len(tag) + 2 + 7) // 8]) + tag + bytes(-(len(tag) + 2) % 8))


CASES = [*rows(), *rate_rows(), *related_rows(), *fragment_rows(), *link_rows()]
