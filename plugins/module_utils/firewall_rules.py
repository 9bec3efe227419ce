# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The firewall's tables and rules, which are the same for any number of VMs. Pure.

A VM is known by its TAP. `Netfilter hooks in nftables <https://wiki.nftables.org/wiki-nftables/index.php/Netfilter_hooks>`_
has the hooks and priorities.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .firewall_sets import ARP_FAMILY, FAMILY, GROUP_SLOTS, REASONS, SETS, TABLE
from .nft_expressions import (
    ACCEPT,
    DROP,
    Json,
    among,
    concat,
    ct,
    field,
    goto,
    is_,
    is_not,
    looked_up,
    meta,
    not_among,
    prefix,
)

# What a VM does not reach unless it is asked for: RFC 1918, RFC 6598, loopback, link-local with the clouds' metadata
# service 169.254.169.254, multicast and reserved; RFC 4193, RFC 4291.
PRIVATE4 = [
    ("0.0.0.0", 8),  # noqa: S104
    ("10.0.0.0", 8),
    ("100.64.0.0", 10),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("172.16.0.0", 12),
    ("192.168.0.0", 16),
    ("224.0.0.0", 3),
]
PRIVATE6 = [("::", 127), ("fc00::", 7), ("fe80::", 10), ("ff00::", 8)]
# RFC 4861: what finds a neighbour, and what a router says.
_NEIGHBOURS = {"set": ["nd-neighbor-solicit", "nd-neighbor-advert"]}
_ROUTERS = {"set": ["nd-router-advert", "nd-redirect"]}
_DHCP_SERVERS = {"set": [67, 547]}

_IN, _OUT, _PROTO, _MARK = meta("iifname"), meta("oifname"), meta("l4proto"), meta("mark")
_PORT, _MAC = field("th", "dport"), field("ether", "saddr")
_SOURCE = {4: field("ip", "saddr"), 6: field("ip6", "saddr")}
_TARGET = {4: field("ip", "daddr"), 6: field("ip6", "daddr")}
_ARP_SENDER = field("arp", "saddr ether")
_TCP_UDP = is_(_PROTO, {"set": ["tcp", "udp"]})
_ANSWER = is_(ct("state"), {"set": ["established", "related"]})
_NEW, _INVALID = is_(ct("state"), "new"), is_(ct("state"), "invalid")
_FORWARDED = {"match": {"op": "in", "left": ct("status"), "right": "dnat"}}
_LOCAL = is_({"fib": {"result": "type", "flags": ["daddr"]}}, "local")
_LINK_LOCAL = {"set": ["::", prefix("fe80::", 10)]}


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules, each with what it is there for; and hook, priority and type, unless other chains lead here."""

    rules: list[tuple[str, list[Json]]]
    hook: tuple[str, int, str] | None = None


def _forward(version: int, *conditions: Json) -> list[Json]:
    key = concat(_TARGET[version], _PROTO, _PORT)
    guest, port = looked_up(key, f"guests{version}"), looked_up(key, f"guest_ports{version}")
    family = "ip" if version == 4 else "ip6"
    return [_TCP_UDP, *conditions, {"dnat": {"family": family, "addr": guest, "port": port}}]


def _client(version: int) -> Json:
    return among(concat(_TARGET[version], _PROTO, _PORT, _SOURCE[version]), f"clients{version}")


def _own(version: int) -> Json:
    return among(concat(_IN, _MAC, _SOURCE[version]), f"sources{version}")


def _limited(tap: Json, rates: str) -> Json:
    return {"limit": looked_up(tap, rates)}


def _dropping(reason: str) -> Chain:
    # An element that is missing must not let a packet through: it is the second rule that drops.
    tap = _OUT if reason == "incoming" else _IN
    return Chain([("counted", [among(tap, f"dropped_{reason}")]), ("dropped", [DROP])])


_PRIVATE = {
    4: is_(_TARGET[4], {"set": [prefix(*network) for network in PRIVATE4]}),
    6: is_(_TARGET[6], {"set": [prefix(*network) for network in PRIVATE6]}),
}

CHAINS: Mapping[tuple[str, str], Chain] = {
    (ARP_FAMILY, "dropped_forged"): _dropping("forged"),
    (ARP_FAMILY, "input"): Chain(
        [
            ("not from a VM", [not_among(_IN, "taps"), ACCEPT]),
            ("own addresses", [among(concat(_IN, _ARP_SENDER, field("arp", "saddr ip")), "sources"), ACCEPT]),
            (
                "a probe before an address is taken (RFC 5227)",
                [
                    is_(field("arp", "saddr ip"), "0.0.0.0"),  # noqa: S104
                    among(concat(_IN, _ARP_SENDER), "macs"),
                    ACCEPT,
                ],
            ),
            ("forged", [goto("dropped_forged")]),
        ],
        ("input", 0, "filter"),
    ),
    **{(FAMILY, f"dropped_{reason}"): _dropping(reason) for reason in REASONS},
    # After fragments are put together (-400), before connections are tracked (-200).
    (FAMILY, "source"): Chain(
        [
            ("not from a VM", [not_among(_IN, "taps"), ACCEPT]),
            ("no DHCP server", [is_(_PROTO, "udp"), is_(field("th", "sport"), _DHCP_SERVERS), goto("dropped_forged")]),
            ("no router", [is_(field("icmp", "type"), "redirect"), goto("dropped_forged")]),
            ("no router", [is_(field("icmpv6", "type"), _ROUTERS), goto("dropped_forged")]),
            ("own address", [_own(4), ACCEPT]),
            ("own address", [_own(6), ACCEPT]),
            (
                "neighbours on the link",
                [
                    among(concat(_IN, _MAC), "macs"),
                    is_(_SOURCE[6], _LINK_LOCAL),
                    is_(field("icmpv6", "type"), _NEIGHBOURS),
                    ACCEPT,
                ],
            ),
            (
                "other talk on the link, which is no forgery",
                [among(concat(_IN, _MAC), "macs"), is_(_SOURCE[6], _LINK_LOCAL), DROP],
            ),
            ("forged", [goto("dropped_forged")]),
        ],
        ("prerouting", -300, "filter"),
    ),
    (FAMILY, "connections"): Chain(
        [
            # It would leave without the host's address: NAT passes it by.
            ("of no connection", [_INVALID, among(_IN, "taps"), goto("dropped_invalid")]),
            ("too many", [_NEW, _limited(_IN, "rates_out"), goto("dropped_rate")]),
        ],
        ("prerouting", -150, "filter"),
    ),
    (FAMILY, "forwards"): Chain(
        [("hosts outside", _forward(version, not_among(_IN, "taps"), _LOCAL, _client(version))) for version in (4, 6)],
        ("prerouting", -100, "nat"),
    ),
    (FAMILY, "local_forwards"): Chain(
        [
            ("the host itself", _forward(4, is_not(_TARGET[4], prefix("127.0.0.0", 8)), _LOCAL)),
            ("the host itself", _forward(6, is_not(_TARGET[6], "::1"), _LOCAL)),
        ],
        ("output", -100, "nat"),
    ),
    (FAMILY, "forward"): Chain(
        [
            ("no VM's", [not_among(_IN, "taps"), not_among(_OUT, "taps"), ACCEPT]),
            ("answers", [_ANSWER, ACCEPT]),
            ("to a VM", [among(_OUT, "taps"), goto("to_vm")]),
            ("nothing but the way out", [not_among(_OUT, "uplinks"), goto("dropped_egress")]),
            *(("asked for", [among(concat(_IN, _TARGET[v]), f"egress_nets{v}"), ACCEPT]) for v in (4, 6)),
            *(
                ("asked for", [among(concat(_IN, _TARGET[v], _PROTO, _PORT), f"egress_ports{v}"), ACCEPT])
                for v in (4, 6)
            ),
            *(("private", [not_among(_IN, "egress_private"), _PRIVATE[v], goto("dropped_egress")]) for v in (4, 6)),
            ("anywhere", [among(_IN, "egress_any"), ACCEPT]),
            ("no more", [goto("dropped_egress")]),
        ],
        ("forward", 0, "filter"),
    ),
    (FAMILY, "to_vm"): Chain(
        [
            ("from a VM", [among(_IN, "taps"), goto("vm_to_vm")]),
            ("too many", [_FORWARDED, _limited(_OUT, "rates_in"), goto("dropped_incoming")]),
            ("forwarded", [_FORWARDED, ACCEPT]),
            ("no more", [goto("dropped_incoming")]),
        ]
    ),
    # The mark holds a group's number for as long as it takes to look it up: nft's JSON knows no other place.
    (FAMILY, "vm_to_vm"): Chain(
        [
            *(
                (
                    f"group {slot} that it may reach",
                    [
                        {"mangle": {"key": _MARK, "value": looked_up(_IN, f"groups{slot}")}},
                        among(concat(_MARK, _OUT), "members"),
                        goto("of_a_group"),
                    ],
                )
                for slot in GROUP_SLOTS
            ),
            ("no more", [goto("dropped_vm")]),
        ]
    ),
    (FAMILY, "of_a_group"): Chain([("no group's mark", [{"mangle": {"key": _MARK, "value": 0}}, ACCEPT])]),
    (FAMILY, "input"): Chain(
        [
            ("not from a VM", [not_among(_IN, "taps"), ACCEPT]),
            ("answers", [_ANSWER, ACCEPT]),
            ("neighbours on the link", [is_(field("icmpv6", "type"), _NEIGHBOURS), ACCEPT]),
            ("asked for", [among(concat(_IN, _PROTO, _PORT), "host_services"), ACCEPT]),
            ("no more", [goto("dropped_host")]),
        ],
        ("input", 0, "filter"),
    ),
    # Whatever it is and whoever sent it: a VM gets what is for its own address.
    (FAMILY, "deliver"): Chain(
        [
            ("not to a VM", [not_among(_OUT, "taps"), ACCEPT]),
            ("own address", [among(concat(_OUT, _TARGET[4]), "targets4"), ACCEPT]),
            ("own address", [among(concat(_OUT, _TARGET[6]), "targets6"), ACCEPT]),
            ("neighbours on the link", [is_(field("icmpv6", "type"), _NEIGHBOURS), ACCEPT]),
            ("no more", [DROP]),
        ],
        ("postrouting", 0, "filter"),
    ),
    (FAMILY, "as_host"): Chain(
        [
            ("as the host", [among(_OUT, "uplinks"), among(_SOURCE[v], f"masquerade{v}"), {"masquerade": None}])
            for v in (4, 6)
        ],
        ("postrouting", 100, "nat"),
    ),
}


def _hook(chain: Chain) -> Json:
    if chain.hook is None:
        return {}
    hook, priority, kind = chain.hook
    return {"hook": hook, "prio": priority, "type": kind, "policy": "accept"}


def _comments() -> dict[tuple[str, str], list[str]]:
    """Return each chain's comments, in order: by them a rule that is missing, moved or of another release is noticed."""
    sets = [[*key, repr(made)] for key, made in SETS.items()]

    def digest(*rule: Any) -> str:
        return hashlib.sha256(json.dumps([sets, *rule], sort_keys=True).encode()).hexdigest()[:12]

    return {
        key: [f"{why} {digest(*key, number, rule)}" for number, (why, rule) in enumerate(chain.rules)]
        for key, chain in CHAINS.items()
    }


def base() -> list[Json]:
    """Return the commands that make the tables anew, without elements; what was there of them goes at the same time."""
    commands: list[Json] = []
    for family in (FAMILY, ARP_FAMILY):
        table = {"table": {"family": family, "name": TABLE}}
        # Adding first lets the deletion succeed where there is nothing.
        commands += [{"add": table}, {"delete": table}, {"add": table}]
    for (family, name), made in SETS.items():
        options: Json = {"family": family, "table": TABLE, "name": name, "type": made.key}
        options |= {"flags": ["interval"]} if made.ranges else {}
        options |= {"stmt": [{"counter": None}]} if made.counts else {}
        commands.append({"add": {"set": options} if made.value is None else {"map": {**options, "map": made.value}}})
    for (family, name), chain in CHAINS.items():
        commands.append({"add": {"chain": {"family": family, "table": TABLE, "name": name, **_hook(chain)}}})
    for (family, name), comments in _comments().items():
        for comment, (_why, rule) in zip(comments, CHAINS[family, name].rules, strict=True):
            body = {"family": family, "table": TABLE, "chain": name, "expr": rule, "comment": comment}
            commands.append({"add": {"rule": body}})
    return commands


def removal() -> list[Json]:
    """Return the commands that leave nothing."""
    tables = [{"table": {"family": family, "name": TABLE}} for family in (FAMILY, ARP_FAMILY)]
    return [command for table in tables for command in ({"add": table}, {"delete": table})]


def families(objects: Iterable[Json]) -> list[str]:
    """Return the families in which what nft lists has a table of ours."""
    tables = [shown["table"] for shown in objects if "table" in shown]
    return [table["family"] for table in tables if table["name"] == TABLE and table["family"] in (FAMILY, ARP_FAMILY)]


def intact(objects: Iterable[Json]) -> bool:
    """Return whether what nft lists has our chains and rules, all of them, unchanged and in order, and no other in our tables."""
    chains: dict[tuple[str, str], Json] = {}
    comments: dict[tuple[str, str], list[str]] = {}
    for shown in objects:
        if chain := shown.get("chain"):
            if chain["table"] == TABLE:
                chains[chain["family"], chain["name"]] = {
                    key: chain[key] for key in ("hook", "prio", "type", "policy") if key in chain
                }
                comments.setdefault((chain["family"], chain["name"]), [])
        elif (rule := shown.get("rule")) and rule["table"] == TABLE:
            comments.setdefault((rule["family"], rule["chain"]), []).append(rule.get("comment", ""))
    return chains == {key: _hook(chain) for key, chain in CHAINS.items()} and comments == _comments()
