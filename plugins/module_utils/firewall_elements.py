# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The elements of the firewall's sets and maps that are facts of a VM. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any, Union

from .addressing import Network
from .firewall_policy import Policy, Rate
from .firewall_sets import ARP_FAMILY, FAMILY, REASONS, SETS, TABLE, Types
from .nft_expressions import Json
from .port_ranges import Ports

# An element: its set, its key and for a map its value, in a form that can be compared: of each part the first and the
# last value, addresses as numbers. A limit counts as an element of the set _LIMITS, by its name.
Parts = tuple[tuple[Any, Any], ...]
Element = tuple[str, str, Parts, Union[Parts, None]]
_LIMITS = "limit"


def group_id(name: str) -> int:
    """Return the number that stands for a group in the kernel, where keys are no longer than a mark: never 0."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") or 1


def of_uplinks(uplinks: Iterable[str]) -> set[Element]:
    """Return the elements for the interfaces that lead out."""
    return {_element(FAMILY, "uplinks", [uplink]) for uplink in uplinks}


def of_vm(policy: Policy) -> set[Element]:
    """Return the elements of one VM."""
    return {_element(*row) for row in (*_identity(policy), *_reach(policy), *_forwards(policy), *_rates(policy))}


Row = tuple[str, str, list[Any], Union[list[Any], None]]


def _identity(policy: Policy) -> Iterator[Row]:
    """Yield who a VM is: where it sits, what it may send from and be sent."""
    tap, mac = policy.tap, policy.mac
    for family in (FAMILY, ARP_FAMILY):
        yield family, "taps", [tap], None
        yield family, "macs", [tap, mac], None
    yield ARP_FAMILY, "sources", [tap, mac, policy.address], None
    for version, address in ((4, policy.address), (6, policy.address6)):
        if address is not None:
            yield FAMILY, f"sources{version}", [tap, mac, address], None
            yield FAMILY, f"targets{version}", [tap, address], None
            if not ip_address(address).is_global:
                yield FAMILY, f"masquerade{version}", [address], None
    yield ARP_FAMILY, "dropped_forged", [tap], None
    for reason in REASONS:
        yield FAMILY, f"dropped_{reason}", [tap], None


def _reach(policy: Policy) -> Iterator[Row]:
    """Yield where a VM may reach: outside, other VMs, the host."""
    tap = policy.tap
    if policy.egress:
        yield FAMILY, "egress_any", [tap], None
    if policy.private:
        yield FAMILY, "egress_private", [tap], None
    for allow in policy.allow:
        version, network = allow.network.version, _range_of(allow.network)
        if allow.proto is None:
            yield FAMILY, f"egress_nets{version}", [tap, network], None
        else:
            yield FAMILY, f"egress_ports{version}", [tap, network, allow.proto, _range(allow.ports)], None
    for slot, group in enumerate(sorted({*policy.groups, *policy.egress_groups}), start=1):
        yield FAMILY, f"groups{slot}", [tap], [group_id(group)]
    for group in policy.groups:
        yield FAMILY, "members", [group_id(group), tap], None
    for proto, ports in policy.host_services:
        yield FAMILY, "host_services", [tap, proto, _range(ports)], None


def _forwards(policy: Policy) -> Iterator[Row]:
    """Yield the ports of the host that lead to a VM, and whom."""
    for forward in policy.forwards:
        for version, guest in ((4, policy.address), (6, policy.address6)):
            anywhere = ip_network("0.0.0.0/0" if version == 4 else "::/0")
            host: Any = _range_of(anywhere) if forward.host_address is None else forward.host_address
            if guest is None or (forward.host_address and ip_address(forward.host_address).version != version):
                continue
            for offset, port in enumerate(range(forward.ports[0], forward.ports[1] + 1)):
                key = [host, forward.proto, port]
                yield FAMILY, f"guests{version}", key, [guest]
                yield FAMILY, f"guest_ports{version}", key, [forward.guest_port + offset]
                for source in forward.sources:
                    if source.version == version:
                        yield FAMILY, f"clients{version}", [*key, _range_of(source)], None


def _rates(policy: Policy) -> Iterator[Row]:
    """Yield the limits on a VM's new connections, which only an object of its own can have."""
    rates: tuple[tuple[str, Rate | None], ...] = (("out", policy.rate_out), ("in", policy.rate_in))
    for direction, rate in rates:
        if rate is not None:
            # A limit cannot change; another one has another name.
            name = f"{direction}-{policy.tap}-{rate.rate}-{rate.per}-{rate.burst}"
            yield FAMILY, _LIMITS, [name], [rate.rate, rate.per, rate.burst]
            yield FAMILY, f"rates_{direction}", [policy.tap], [name]


# ---- In a form that can be compared ----


def _range_of(network: Network) -> Json:
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}


def _range(ports: Ports) -> Json:
    return {"range": list(ports)}


def _interval(value: Any) -> tuple[Any, Any]:
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


def _element(family: str, name: str, key: list[Any], value: list[Any] | None = None) -> Element:
    return family, name, tuple(map(_interval, key)), None if value is None else tuple(map(_interval, value))


def _parts(value: Any) -> list[Any]:
    return list(value["concat"]) if isinstance(value, dict) and "concat" in value else [value]


def listed(objects: Iterable[Json]) -> set[Element]:
    """Return the elements in what nft lists of our tables."""
    elements = set()
    for shown in objects:
        if limit := shown.get("limit"):
            settings = [limit["rate"], limit["per"], limit.get("burst", 0)]
            elements.add(_element(limit["family"], _LIMITS, [limit["name"]], settings))
        body: Json = shown.get("set") or shown.get("map") or {}
        for element in body.get("elem", ()):
            key, value = element if "map" in shown else (element, None)
            if isinstance(key, dict) and "elem" in key:
                key = key["elem"]["val"]
            elements.add(_element(body["family"], body["name"], _parts(key), None if value is None else _parts(value)))
    return elements


# ---- For nft ----


def changes(had: set[Element], wanted: set[Element]) -> list[Json]:
    """Return the commands that make the ``had`` elements the ``wanted`` ones."""
    # What goes makes room first: a map holds a key once.
    return [*_commands("delete", had - wanted), *_commands("add", wanted - had)]


def exactly(had: set[Element], wanted: set[Element]) -> list[Json]:
    """Return commands that only succeed where the ``had`` elements are all there and the other ``wanted`` ones are not."""
    return [*_commands("delete", had), *_commands("create", wanted)]


def _commands(verb: str, rows: Iterable[Element]) -> list[Json]:
    limits: list[Json] = []
    by_set: dict[tuple[str, str], list[Any]] = {}
    for family, name, key, value in sorted(rows, key=repr):
        if name == _LIMITS:
            limits.append({verb: {"limit": _limit(key, value)}})
        else:
            element = _as_json(family, name, key, None if verb == "delete" else value)
            by_set.setdefault((family, name), []).append(element)
    elements: list[Json] = [
        {verb: {"element": {"family": family, "table": TABLE, "name": name, "elem": rendered}}}
        for (family, name), rendered in by_set.items()
    ]
    # Elements refer to limits.
    return [*elements, *limits] if verb == "delete" else [*limits, *elements]


def _limit(key: Parts, value: Parts | None) -> Json:
    rate, per, burst = (first for first, _last in value or ())
    # "inv" makes it match what is over the limit.
    settings = {"rate": rate, "per": per, "burst": burst, "inv": True}
    return {"family": FAMILY, "table": TABLE, "name": key[0][0], **settings}


def _as_json(family: str, name: str, key: Parts, value: Parts | None) -> Any:
    made = SETS[family, name]
    rendered = _join(key, made.key)
    return rendered if value is None or made.value is None else [rendered, _join(value, made.value)]


def _join(parts: Parts, types: Types) -> Any:
    if isinstance(types, str):
        return _part(parts[0], types)
    return {"concat": [_part(part, kind) for part, kind in zip(parts, types, strict=True)]}


def _part(interval: tuple[Any, Any], kind: str) -> Any:
    first, last = interval
    if kind in ("ipv4_addr", "ipv6_addr"):
        width = 4 if kind == "ipv4_addr" else 16
        first, last = (str(ip_address(number.to_bytes(width, "big"))) for number in interval)
    return first if first == last else {"range": [first, last]}


def in_words(rows: Iterable[Element]) -> list[str]:
    """Return commands that add elements, in nft's own language: the only one that nftables.service reads.

    What stands in them are numbers, addresses, and names that neither a space nor a sign of that language can be part of.
    """
    limits: list[str] = []
    by_set: dict[tuple[str, str], list[str]] = {}
    for family, name, key, value in sorted(rows, key=repr):
        if name == _LIMITS:
            limits.append(
                "add limit {family} {table} {name} {{ rate over {rate}/{per} burst {burst} packets; }}".format(
                    **_limit(key, value)
                )
            )
            continue
        made = SETS[family, name]
        words = _words(key, made.key)
        if value is not None and made.value is not None:
            words += f" : {_words(value, made.value)}"
        by_set.setdefault((family, name), []).append(words)
    return [
        *limits,
        *(f"add element {family} {TABLE} {name} {{ {', '.join(words)} }}" for (family, name), words in by_set.items()),
    ]


def _words(parts: Parts, types: Types) -> str:
    kinds = [types] if isinstance(types, str) else types
    return " . ".join(_word(_part(part, kind), kind) for part, kind in zip(parts, kinds, strict=True))


def _word(value: Any, kind: str) -> str:
    if isinstance(value, dict):
        return "-".join(map(str, value["range"]))
    # Without quotes a name could be one of the language's own words.
    return f'"{value}"' if kind in ("ifname", "limit") else str(value)


def shown(rows: Iterable[Element]) -> list[str]:
    """Return elements for people to read, as diff mode shows them."""
    return sorted(_line(*row) for row in rows)


def _line(family: str, name: str, key: Parts, value: Parts | None) -> str:
    element = _limit(key, value) if name == _LIMITS else _as_json(family, name, key, value)
    return f"{name}: {json.dumps(element)}" + (" (arp)" if family == ARP_FAMILY else "")
