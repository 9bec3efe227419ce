# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The firewall's tables: rules that are the same for any number of VMs, and elements that are facts of each. Pure.

A packet finds its VM by looking up sets and maps, whose cost does not grow with their size, and a VM comes and goes by
elements alone. JSON as in libnftables-json(5).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any, Union

from .addressing import Network
from .firewall_policy import Policy

Json = dict[str, Any]
FAMILY, TABLE = "inet", "cloud_hypervisor"
ARP_FAMILY = "arp"

# What a VM does not reach unless it is asked for: RFC 1918, RFC 6598, loopback, link-local with the clouds' metadata
# service 169.254.169.254, multicast and reserved; RFC 4193, RFC 4291.
PRIVATE4 = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/3",
]
PRIVATE6 = ["::/127", "fc00::/7", "fe80::/10", "ff00::/8"]

# The sets and maps by table and name: the key's types, for a map the value's, and whether keys are intervals.
_SETS: Mapping[tuple[str, str], tuple[Any, Any, bool]] = {
    (FAMILY, "taps"): ("ifname", None, False),
    (FAMILY, "uplinks"): ("ifname", None, False),
    (FAMILY, "private4"): ("ipv4_addr", None, True),
    (FAMILY, "private6"): ("ipv6_addr", None, True),
    (FAMILY, "macs"): (["ifname", "ether_addr"], None, False),
    (FAMILY, "sources4"): (["ifname", "ether_addr", "ipv4_addr"], None, False),
    (FAMILY, "sources6"): (["ifname", "ether_addr", "ipv6_addr"], None, False),
    (FAMILY, "targets4"): (["ifname", "ipv4_addr"], None, False),
    (FAMILY, "targets6"): (["ifname", "ipv6_addr"], None, False),
    (FAMILY, "egress_any"): ("ifname", None, False),
    (FAMILY, "egress_private"): ("ifname", None, False),
    (FAMILY, "egress_nets4"): (["ifname", "ipv4_addr"], None, True),
    (FAMILY, "egress_nets6"): (["ifname", "ipv6_addr"], None, True),
    (FAMILY, "egress_ports4"): (["ifname", "ipv4_addr", "inet_proto", "inet_service"], None, True),
    (FAMILY, "egress_ports6"): (["ifname", "ipv6_addr", "inet_proto", "inet_service"], None, True),
    (FAMILY, "host_services"): (["ifname", "inet_proto", "inet_service"], None, True),
    # Two maps, since the JSON of nft 1.0 knows no map to an address and a port together.
    (FAMILY, "guests4"): (["ipv4_addr", "inet_proto", "inet_service"], "ipv4_addr", True),
    (FAMILY, "guests6"): (["ipv6_addr", "inet_proto", "inet_service"], "ipv6_addr", True),
    (FAMILY, "guest_ports4"): (["ipv4_addr", "inet_proto", "inet_service"], "inet_service", True),
    (FAMILY, "guest_ports6"): (["ipv6_addr", "inet_proto", "inet_service"], "inet_service", True),
    (FAMILY, "clients4"): (["ipv4_addr", "inet_proto", "inet_service", "ipv4_addr"], None, True),
    (FAMILY, "clients6"): (["ipv6_addr", "inet_proto", "inet_service", "ipv6_addr"], None, True),
    (FAMILY, "masquerade4"): ("ipv4_addr", None, False),
    (FAMILY, "masquerade6"): ("ipv6_addr", None, False),
    (ARP_FAMILY, "taps"): ("ifname", None, False),
    (ARP_FAMILY, "macs"): (["ifname", "ether_addr"], None, False),
    (ARP_FAMILY, "sources"): (["ifname", "ether_addr", "ipv4_addr"], None, False),
}

# ---- Expressions ----


def _meta(key: str) -> Json:
    return {"meta": {"key": key}}


def _field(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _concat(*parts: Json) -> Json:
    return {"concat": list(parts)}


def _is(left: Json, right: Any) -> Json:
    return {"match": {"op": "==", "left": left, "right": right}}


def _is_not(left: Json, right: Any) -> Json:
    return {"match": {"op": "!=", "left": left, "right": right}}


def _in(left: Json, name: str) -> Json:
    return _is(left, f"@{name}")


_IN, _OUT, _PROTO = _meta("iifname"), _meta("oifname"), _meta("l4proto")
_PORT = _field("th", "dport")
_MAC = _field("ether", "saddr")
_STATE = {"ct": {"key": "state"}}
_ND = {"set": ["nd-neighbor-solicit", "nd-neighbor-advert"]}
_COUNT: Json = {"counter": None}
_ACCEPT: Json = {"accept": None}
_DROP: Json = {"drop": None}
_TCP_UDP = _is(_PROTO, {"set": ["tcp", "udp"]})
_KNOWN = _is(_STATE, {"set": ["established", "related"]})
_IPV4 = _is(_meta("nfproto"), "ipv4")
_IPV6 = _is(_meta("nfproto"), "ipv6")


def _nat(version: int, *conditions: Json) -> list[Json]:
    family = "ip" if version == 4 else "ip6"
    key = _concat(_field(family, "daddr"), _PROTO, _PORT)
    guest = {"map": {"key": key, "data": f"@guests{version}"}}
    port = {"map": {"key": key, "data": f"@guest_ports{version}"}}
    return [_TCP_UDP, *conditions, {"dnat": {"family": family, "addr": guest, "port": port}}]


def _local(address: Json) -> Json:
    return _is({"fib": {"result": "type", "flags": ["daddr"]}}, "local")


def _clients(version: int) -> Json:
    family = "ip" if version == 4 else "ip6"
    return _in(_concat(_field(family, "daddr"), _PROTO, _PORT, _field(family, "saddr")), f"clients{version}")


# The chains by table and name: hook, priority and type, and the rules, each with what it is there for.
_CHAINS: Mapping[tuple[str, str], tuple[tuple[str, int, str] | None, list[tuple[str, list[Json]]]]] = {
    (ARP_FAMILY, "input"): (
        ("input", 0, "filter"),
        [
            ("not from a VM", [_is_not(_IN, "@taps"), _ACCEPT]),
            (
                "own addresses",
                [_in(_concat(_IN, _field("arp", "saddr ether"), _field("arp", "saddr ip")), "sources"), _ACCEPT],
            ),
            (
                "a probe before an address is taken (RFC 5227)",
                [
                    _is(_field("arp", "saddr ip"), str(IPv4Address(0))),
                    _in(_concat(_IN, _field("arp", "saddr ether")), "macs"),
                    _ACCEPT,
                ],
            ),
            ("forged", [_COUNT, _DROP]),
        ],
    ),
    (FAMILY, "source"): (
        ("prerouting", -300, "filter"),
        [
            ("not from a VM", [_is_not(_IN, "@taps"), _ACCEPT]),
            ("no DHCP server", [_is(_PROTO, "udp"), _is(_field("th", "sport"), {"set": [67, 547]}), _COUNT, _DROP]),
            ("no redirects", [_is(_field("icmp", "type"), "redirect"), _COUNT, _DROP]),
            ("own addresses", [_IPV4, _in(_concat(_IN, _MAC, _field("ip", "saddr")), "sources4"), _ACCEPT]),
            (
                "own addresses but no router's",
                [
                    _IPV6,
                    _in(_concat(_IN, _MAC, _field("ip6", "saddr")), "sources6"),
                    _is_not(_field("icmpv6", "type"), {"set": ["nd-router-advert", "nd-redirect"]}),
                    _ACCEPT,
                ],
            ),
            (
                "own addresses",
                [
                    _IPV6,
                    _in(_concat(_IN, _MAC, _field("ip6", "saddr")), "sources6"),
                    _is_not(_PROTO, "ipv6-icmp"),
                    _ACCEPT,
                ],
            ),
            (
                "neighbours on the link",
                [
                    _in(_concat(_IN, _MAC), "macs"),
                    _is(_field("ip6", "saddr"), {"set": ["::", {"prefix": {"addr": "fe80::", "len": 10}}]}),
                    _is(_field("icmpv6", "type"), _ND),
                    _ACCEPT,
                ],
            ),
            ("forged", [_COUNT, _DROP]),
        ],
    ),
    (FAMILY, "forwards"): (
        ("prerouting", -100, "nat"),
        [
            ("hosts outside", _nat(4, _is_not(_IN, "@taps"), _local(_IN), _clients(4))),
            ("hosts outside", _nat(6, _is_not(_IN, "@taps"), _local(_IN), _clients(6))),
        ],
    ),
    (FAMILY, "local_forwards"): (
        ("output", -100, "nat"),
        [
            (
                "the host itself, on its own addresses",
                _nat(
                    4,
                    _is_not(_field("ip", "daddr"), {"prefix": {"addr": "127.0.0.0", "len": 8}}),
                    _local(_IN),
                ),
            ),
            ("the host itself, on its own addresses", _nat(6, _is_not(_field("ip6", "daddr"), "::1"), _local(_IN))),
        ],
    ),
    (FAMILY, "forward"): (
        ("forward", 0, "filter"),
        [
            ("no VM's", [_is_not(_IN, "@taps"), _is_not(_OUT, "@taps"), _ACCEPT]),
            ("to a VM", [_in(_OUT, "taps"), {"goto": {"target": "to_vm"}}]),
            ("answers", [_KNOWN, _ACCEPT]),
            ("nothing but the way out", [_is_not(_OUT, "@uplinks"), _COUNT, _DROP]),
            ("asked for", [_in(_concat(_IN, _field("ip", "daddr")), "egress_nets4"), _ACCEPT]),
            ("asked for", [_in(_concat(_IN, _field("ip6", "daddr")), "egress_nets6"), _ACCEPT]),
            (
                "asked for",
                [_TCP_UDP, _in(_concat(_IN, _field("ip", "daddr"), _PROTO, _PORT), "egress_ports4"), _ACCEPT],
            ),
            (
                "asked for",
                [_TCP_UDP, _in(_concat(_IN, _field("ip6", "daddr"), _PROTO, _PORT), "egress_ports6"), _ACCEPT],
            ),
            ("private", [_is_not(_IN, "@egress_private"), _in(_field("ip", "daddr"), "private4"), _COUNT, _DROP]),
            ("private", [_is_not(_IN, "@egress_private"), _in(_field("ip6", "daddr"), "private6"), _COUNT, _DROP]),
            ("anywhere", [_in(_IN, "egress_any"), _ACCEPT]),
            ("no more", [_COUNT, _DROP]),
        ],
    ),
    (FAMILY, "to_vm"): (
        None,
        [
            ("no other's IPv4", [_IPV4, _is_not(_concat(_OUT, _field("ip", "daddr")), "@targets4"), _COUNT, _DROP]),
            ("no other's IPv6", [_IPV6, _is_not(_concat(_OUT, _field("ip6", "daddr")), "@targets6"), _COUNT, _DROP]),
            ("answers", [_KNOWN, _ACCEPT]),
            ("no VM's", [_in(_IN, "taps"), _COUNT, _DROP]),
            ("forwarded", [{"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}}, _ACCEPT]),
            ("no more", [_COUNT, _DROP]),
        ],
    ),
    (FAMILY, "input"): (
        ("input", 0, "filter"),
        [
            ("not from a VM", [_is_not(_IN, "@taps"), _ACCEPT]),
            ("answers", [_KNOWN, _ACCEPT]),
            ("neighbours on the link", [_is(_field("icmpv6", "type"), _ND), _ACCEPT]),
            ("asked for", [_TCP_UDP, _in(_concat(_IN, _PROTO, _PORT), "host_services"), _ACCEPT]),
            ("no more", [_COUNT, _DROP]),
        ],
    ),
    (FAMILY, "output"): (
        ("output", 0, "filter"),
        [
            ("not to a VM", [_is_not(_OUT, "@taps"), _ACCEPT]),
            ("its IPv4", [_in(_concat(_OUT, _field("ip", "daddr")), "targets4"), _ACCEPT]),
            ("its IPv6", [_in(_concat(_OUT, _field("ip6", "daddr")), "targets6"), _ACCEPT]),
            ("neighbours on the link", [_is(_field("icmpv6", "type"), _ND), _ACCEPT]),
            ("no more", [_COUNT, _DROP]),
        ],
    ),
    (FAMILY, "as_host"): (
        ("postrouting", 100, "nat"),
        [
            ("as the host", [_in(_OUT, "uplinks"), _in(_field("ip", "saddr"), "masquerade4"), {"masquerade": None}]),
            ("as the host", [_in(_OUT, "uplinks"), _in(_field("ip6", "saddr"), "masquerade6"), {"masquerade": None}]),
        ],
    ),
}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def rule_comments() -> dict[tuple[str, str], list[str]]:
    """Return each chain's comments, in order: by them a rule that is missing, moved or of another release is noticed."""
    return {
        key: [f"{purpose} {_digest([key, number, rule])}" for number, (purpose, rule) in enumerate(rules)]
        for key, (_hook, rules) in _CHAINS.items()
    }


# ---- Commands ----


def base() -> list[Json]:
    """Return the commands that make the tables anew, without elements; what was there of them goes at the same time."""
    commands: list[Json] = []
    for family in (FAMILY, ARP_FAMILY):
        table = {"table": {"family": family, "name": TABLE}}
        # Adding first lets the deletion succeed where there is nothing.
        commands += [{"add": table}, {"delete": table}, {"add": table}]
    for (family, name), (key, value, interval) in _SETS.items():
        options: Json = {"family": family, "table": TABLE, "name": name, "type": key}
        if interval:
            options["flags"] = ["interval"]
        if value is None:
            commands.append({"add": {"set": options}})
        else:
            commands.append({"add": {"map": {**options, "map": value}}})
    for (family, name), (hook, _rules) in _CHAINS.items():
        chain: Json = {"family": family, "table": TABLE, "name": name}
        if hook is not None:
            chain |= {"hook": hook[0], "prio": hook[1], "type": hook[2], "policy": "accept"}
        commands.append({"add": {"chain": chain}})
    comments = rule_comments()
    for (family, name), (_hook, rules) in _CHAINS.items():
        for comment, (_purpose, rule) in zip(comments[family, name], rules, strict=True):
            commands.append(
                {"add": {"rule": {"family": family, "table": TABLE, "chain": name, "expr": rule, "comment": comment}}}
            )
    return commands


def removal() -> list[Json]:
    """Return the commands that leave nothing."""
    return [
        command
        for family in (FAMILY, ARP_FAMILY)
        for command in (
            {"add": {"table": {"family": family, "name": TABLE}}},
            {"delete": {"table": {"family": family, "name": TABLE}}},
        )
    ]


# ---- Elements ----

# An element: its set, its key in a form that can be compared, and for a map its value.
Element = tuple[str, str, tuple[Any, ...], Union[tuple[Any, ...], None]]


def _interval(value: Any) -> tuple[Any, Any]:
    """Return a part of a key as first and last value: addresses and ports as numbers, names as they are."""
    if isinstance(value, dict):
        if "prefix" in value:
            network = ip_network(f"{value['prefix']['addr']}/{value['prefix']['len']}")
            return int(network[0]), int(network[-1])
        first, last = value["range"]
        return _interval(first)[0], _interval(last)[1]
    if isinstance(value, int):
        return value, value
    try:
        number = int(ip_address(value))
    except ValueError:
        return value, value
    return number, number


def _parts(value: Any) -> list[Any]:
    return list(value["concat"]) if isinstance(value, dict) and "concat" in value else [value]


def listed(objects: Iterable[Json]) -> set[Element]:
    """Return the elements in what nft lists of a table."""
    elements = set()
    for shown in objects:
        body: Json = shown.get("set") or shown.get("map") or {}
        for element in body.get("elem", ()):
            key, value = element if "map" in shown else (element, None)
            if isinstance(key, dict) and "elem" in key:
                key = key["elem"]["val"]
            elements.add(_element(body["family"], body["name"], _parts(key), None if value is None else _parts(value)))
    return elements


def _element(family: str, name: str, key: list[Any], value: list[Any] | None = None) -> Element:
    return family, name, tuple(map(_interval, key)), None if value is None else tuple(map(_interval, value))


def _prefix(network: Network) -> Json:
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}


def _range(ports: tuple[int, int]) -> Json:
    return {"range": list(ports)}


def elements(policies: Iterable[Policy], uplinks: Iterable[str]) -> set[Element]:
    """Return all elements for these VMs."""
    found = {_element(FAMILY, "uplinks", [uplink]) for uplink in uplinks}
    found |= {_element(FAMILY, "private4", [_prefix(ip_network(text))]) for text in PRIVATE4}
    found |= {_element(FAMILY, "private6", [_prefix(ip_network(text))]) for text in PRIVATE6}
    for policy in policies:
        found |= of_vm(policy)
    return found


def of_vm(policy: Policy) -> set[Element]:
    """Return the elements of one VM."""
    tap, mac, address, address6 = policy.tap, policy.mac, policy.address, policy.address6
    rows: list[tuple[str, str, list[Any], list[Any] | None]] = [
        (FAMILY, "taps", [tap], None),
        (FAMILY, "macs", [tap, mac], None),
        (FAMILY, "sources4", [tap, mac, address], None),
        (FAMILY, "targets4", [tap, address], None),
        (FAMILY, "masquerade4", [address], None),
        (ARP_FAMILY, "taps", [tap], None),
        (ARP_FAMILY, "macs", [tap, mac], None),
        (ARP_FAMILY, "sources", [tap, mac, address], None),
    ]
    if address6 is not None:
        rows += [(FAMILY, "sources6", [tap, mac, address6], None), (FAMILY, "targets6", [tap, address6], None)]
        if not ip_address(address6).is_global:
            rows.append((FAMILY, "masquerade6", [address6], None))
    rows += [(FAMILY, "egress_any", [tap], None)] if policy.egress else []
    rows += [(FAMILY, "egress_private", [tap], None)] if policy.private else []
    for allow in policy.allow:
        version, network = allow.network.version, _prefix(allow.network)
        if allow.proto is None:
            rows.append((FAMILY, f"egress_nets{version}", [tap, network], None))
        else:
            rows.append((FAMILY, f"egress_ports{version}", [tap, network, allow.proto, _range(allow.ports)], None))
    rows += [(FAMILY, "host_services", [tap, proto, _range(ports)], None) for proto, ports in policy.host_services]
    for forward in policy.forwards:
        for version, guest in ((4, address), (6, address6)):
            anywhere = ip_network("0.0.0.0/0" if version == 4 else "::/0")
            host: Any = _prefix(anywhere) if forward.host_address is None else forward.host_address
            if guest is None or (forward.host_address and ip_address(forward.host_address).version != version):
                continue
            for offset, port in enumerate(range(forward.ports[0], forward.ports[1] + 1)):
                key = [host, forward.proto, port]
                rows.append((FAMILY, f"guests{version}", key, [guest]))
                rows.append((FAMILY, f"guest_ports{version}", key, [forward.guest_port + offset]))
                for source in forward.sources:
                    if source.version == version:
                        rows.append((FAMILY, f"clients{version}", [*key, _prefix(source)], None))
    return {_element(family, name, key, value) for family, name, key, value in rows}


def changes(live: set[Element], wanted: set[Element]) -> list[Json]:
    """Return the commands that make ``live`` elements the ``wanted`` ones."""
    commands: list[Json] = []
    # What goes makes room first: a map holds a key once.
    for verb, rows in (("delete", live - wanted), ("add", wanted - live)):
        by_set: dict[tuple[str, str], list[Any]] = {}
        for family, name, key, value in sorted(rows, key=repr):
            by_set.setdefault((family, name), []).append(_as_json(family, name, key, value if verb == "add" else None))
        for (family, name), rendered in by_set.items():
            commands.append({verb: {"element": {"family": family, "table": TABLE, "name": name, "elem": rendered}}})
    return commands


def _as_json(family: str, name: str, key: tuple[Any, ...], value: tuple[Any, ...] | None) -> Any:
    types, values, _interval_set = _SETS[family, name]
    rendered = _join(key, types)
    return rendered if value is None else [rendered, _join(value, values)]


def _join(parts: tuple[Any, ...], types: Any) -> Any:
    if isinstance(types, str):
        return _part(parts[0], types)
    return {"concat": [_part(part, kind) for part, kind in zip(parts, types, strict=True)]}


def _part(interval: tuple[Any, Any], kind: str) -> Any:
    first, last = interval
    if kind in ("ipv4_addr", "ipv6_addr"):
        width = 4 if kind == "ipv4_addr" else 16
        first, last = (str(ip_address(number.to_bytes(width, "big"))) for number in interval)
    return first if first == last else {"range": [first, last]}


def shown(rows: Iterable[Element]) -> list[str]:
    """Return elements for people to read, as diff mode shows them."""
    return sorted(
        f"{name}: {json.dumps(_as_json(family, name, key, value))}" + (" (arp)" if family == ARP_FAMILY else "")
        for family, name, key, value in rows
    )
