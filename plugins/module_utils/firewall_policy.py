# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a VM may reach and what may reach it, from its options. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Any, Literal

from .addressing import Network, parse_address, parse_mac, parse_network
from .errors import MicrovmError
from .names import check_vm_name
from .port_ranges import ALL_PORTS, Ports, merged, parse_ports, without
from .tap import check_name

Proto = Literal["tcp", "udp"]
EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
# Each port of a range is an element of its own, so that finding one costs the same whatever the range.
_MAX_PORTS = 1024
# For each that a VM may reach there is a rule that looks it up, whoever the VM is.
MAX_GROUPS = 8
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
# The burst of nft's own limits, in packets (nft(8), LIMIT STATEMENT).
_BURST = 5


@dataclass(frozen=True, slots=True)
class Allow:
    """Somewhere a VM may reach: a network and, unless all of them, a protocol and ports."""

    network: Network
    proto: Proto | None
    ports: Ports


@dataclass(frozen=True, slots=True)
class Forward:
    """Ports of the host, on one address or all, that lead to as many ports of the VM, for clients in ``sources``."""

    proto: Proto
    ports: Ports
    guest_port: int
    host_address: str | None
    sources: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class Rate:
    """How many connections may begin in each second, minute, hour or day, and ``burst`` how many at once."""

    rate: int
    per: str
    burst: int


@dataclass(frozen=True, slots=True)
class Policy:
    """One VM's place in the firewall.

    The VMs of a group reach each other, and so does, one way, who has the group among its ``egress_groups``. Neither the
    networks in ``allow`` nor the ports in ``host_services`` overlap.
    """

    name: str
    tap: str
    mac: str
    address: str
    address6: str | None
    egress: bool
    private: bool
    allow: tuple[Allow, ...]
    egress_groups: tuple[str, ...]
    groups: tuple[str, ...]
    forwards: tuple[Forward, ...]
    host_services: tuple[tuple[Proto, Ports], ...]
    rate_out: Rate | None
    rate_in: Rate | None


def parse(options: Mapping[str, Any]) -> Policy:
    """Read one VM's options. Raises MicrovmError, naming the option."""
    name = check_vm_name(options["name"])
    for option in ("tap", "mac", "address"):
        if options.get(option) is None:
            raise MicrovmError("is missing; ch_lease returns it", option=option)
    egress = options.get("egress") or {}
    rates = options.get("new_connections") or {}
    groups = _groups(options.get("groups"), option="groups")
    egress_groups = _groups(egress.get("groups"), option="egress.groups")
    if len({*groups, *egress_groups}) > MAX_GROUPS:
        raise MicrovmError(
            f"{len({*groups, *egress_groups})} groups are too many for one VM; {MAX_GROUPS} is the most",
            option="groups",
        )
    return Policy(
        name=name,
        tap=check_name(options["tap"]),
        mac=parse_mac(options["mac"]),
        address=_address(options["address"], 4, options.get("subnet"), option="address"),
        address6=None
        if options.get("address6") is None
        else _address(options["address6"], 6, options.get("subnet6"), option="address6"),
        egress=(egress.get("policy") or "all") == "all",
        private=bool(egress.get("private")),
        allow=_disjoint([_allow(rule) for rule in egress.get("allow") or ()]),
        egress_groups=egress_groups,
        groups=groups,
        forwards=tuple(_forward(rule) for rule in options.get("forwards") or ()),
        host_services=_host_services(options.get("host_services") or ()),
        rate_out=_rate(rates.get("out"), option="new_connections.out"),
        rate_in=_rate(rates.get("in"), option="new_connections.in"),
    )


def canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are given, as JSON has them, addresses in one spelling. Raises MicrovmError, naming the option."""
    policy = parse(options)
    found: dict[str, Any] = _given(json.loads(json.dumps(options)))
    own = {"mac": policy.mac, "address": policy.address, "address6": policy.address6}
    return {**found, **{key: value for key, value in own.items() if value is not None}}


def _given(value: Any) -> Any:
    """Return a value without the options in it, however deep, that are None."""
    if isinstance(value, dict):
        return {key: _given(part) for key, part in value.items() if part is not None}
    return [_given(part) for part in value] if isinstance(value, list) else value


def _address(text: str, version: int, subnet: Any, *, option: str) -> str:
    address = parse_address(text, version, option=option)
    if subnet is not None:
        leased = parse_network(subnet, option="subnet" if version == 4 else "subnet6")
        if address not in leased:
            raise MicrovmError(f"{address} is not in {leased}, the subnet of the VM's lease", option=option)
    return str(address)


def _collapsed(networks: Iterable[Network]) -> tuple[Network, ...]:
    """Return the same addresses in as few networks as there can be, which do not overlap then."""
    found = list(networks)
    four = collapse_addresses(network for network in found if isinstance(network, IPv4Network))
    six = collapse_addresses(network for network in found if isinstance(network, IPv6Network))
    return (*four, *six)


def _groups(names: Any, *, option: str) -> tuple[str, ...]:
    for name in names or ():
        if not _GROUP.fullmatch(str(name)):
            raise MicrovmError(
                f"{name!r} does not name a group: use 1 to 63 letters, digits, '-', '_' or '.', no sign first",
                option=option,
            )
    return tuple(sorted({str(name) for name in names or ()}))


def _rate(options: Mapping[str, Any] | None, *, option: str) -> Rate | None:
    if options is None:
        return None
    rate = Rate(
        int(options["rate"]),
        options.get("per") or "second",
        _BURST if options.get("burst") is None else int(options["burst"]),
    )
    # As many as fit into the kernel's 32 bits.
    for key, value in (("rate", rate.rate), ("burst", rate.burst)):
        if not 1 <= value < 1 << 32:
            raise MicrovmError(
                f"{value} is not a number of connections, 1 to {(1 << 32) - 1}", option=f"{option}.{key}"
            )
    return rate


def _host_services(rules: Sequence[Mapping[str, Any]]) -> tuple[tuple[Proto, Ports], ...]:
    by_proto: dict[Proto, list[Ports]] = {}
    for rule in rules:
        ports = parse_ports(rule.get("port"), option="host_services.port")
        by_proto.setdefault(rule.get("proto") or "tcp", []).append(ports)
    return tuple((proto, ports) for proto, asked in by_proto.items() for ports in merged(asked))


def _allow(options: Mapping[str, Any]) -> Allow:
    proto, ports = options.get("proto"), options.get("ports")
    if ports is not None and proto is None:
        raise MicrovmError("ports are those of a protocol; give proto as well", option="egress.allow.proto")
    network = parse_network(options.get("cidr"), option="egress.allow.cidr")
    return Allow(network, proto, ALL_PORTS if ports is None else parse_ports(ports, option="egress.allow.ports"))


def _disjoint(allowed: Sequence[Allow]) -> tuple[Allow, ...]:
    """Return what allows the same and does not overlap, which the kernel refuses in a set (nft_set_pipapo.c).

    Of two networks that share an address one holds the other, so that a network needs only the ports that those around it
    do not have.
    """
    whole = _collapsed(allow.network for allow in allowed if allow.proto is None)
    found = [Allow(network, None, ALL_PORTS) for network in whole]
    by_network: dict[tuple[Proto, Network], list[Ports]] = {}
    for allow in allowed:
        if allow.proto is not None and not any(_holds(network, allow.network) for network in whole):
            by_network.setdefault((allow.proto, allow.network), []).append(allow.ports)
    for (proto, network), asked in by_network.items():
        around = [
            ports
            for (other_proto, other), others in by_network.items()
            if other_proto == proto and other != network and _holds(other, network)
            for ports in others
        ]
        found += [Allow(network, proto, ports) for ports in without(asked, around)]
    return tuple(found)


def _holds(outer: Network, inner: Network) -> bool:
    return outer.version == inner.version and inner.network_address in outer and outer.prefixlen <= inner.prefixlen


def _forward(options: Mapping[str, Any]) -> Forward:
    ports = parse_ports(options.get("port"), option="forwards.port")
    count = ports[1] - ports[0] + 1
    if count > _MAX_PORTS:
        raise MicrovmError(f"{options['port']!r} are {count} ports; {_MAX_PORTS} is the most", option="forwards.port")
    guest_port = ports[0] if options.get("guest_port") is None else int(options["guest_port"])
    if not 1 <= guest_port <= 65536 - count:
        raise MicrovmError(
            f"{guest_port} is no port, or the range after it ends past 65535", option="forwards.guest_port"
        )
    host_address = options.get("host_address")
    if host_address is not None:
        try:
            host_address = str(ip_address(host_address))
        except ValueError as error:
            raise MicrovmError(f"{host_address!r} is not an address", option="forwards.host_address") from error
    sources = _collapsed(parse_network(text, option="forwards.sources") for text in options.get("sources") or ())
    return Forward(options.get("proto") or "tcp", ports, guest_port, host_address, sources or EVERYWHERE)
