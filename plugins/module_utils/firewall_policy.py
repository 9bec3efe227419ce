# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a VM may reach and what may reach it, from its options. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from .addressing import Network, parse_mac
from .errors import MicrovmError
from .names import check_vm_name
from .tap import check_name

Proto = Literal["tcp", "udp"]
Ports = tuple[int, int]
EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
# Each port of a range is an element of its own, so that finding one costs the same whatever the range.
_MAX_PORTS = 1024


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
class Policy:
    """One VM's place in the firewall."""

    name: str
    tap: str
    mac: str
    address: str
    address6: str | None
    egress: bool
    private: bool
    allow: tuple[Allow, ...]
    forwards: tuple[Forward, ...]
    host_services: tuple[tuple[Proto, Ports], ...]


def parse(options: Mapping[str, Any]) -> Policy:
    """Read one VM's options. Raises MicrovmError, naming the option."""
    name = check_vm_name(options["name"])
    for option in ("tap", "mac", "address"):
        if options.get(option) is None:
            raise MicrovmError("is missing; ch_lease returns it", option=option)
    egress = options.get("egress") or {}
    return Policy(
        name=name,
        tap=check_name(options["tap"]),
        mac=parse_mac(options["mac"]),
        address=_address(options["address"], 4, option="address"),
        address6=None if options.get("address6") is None else _address(options["address6"], 6, option="address6"),
        egress=(egress.get("policy") or "all") == "all",
        private=bool(egress.get("private")),
        allow=tuple(_allow(rule) for rule in egress.get("allow") or ()),
        forwards=tuple(_forward(rule) for rule in options.get("forwards") or ()),
        host_services=tuple(
            (rule.get("proto") or "tcp", _ports(rule.get("port"), option="host_services.port"))
            for rule in options.get("host_services") or ()
        ),
    )


def _address(text: str, version: int, *, option: str) -> str:
    try:
        address = ip_address(text)
    except ValueError as error:
        raise MicrovmError(f"{text!r} is not an IPv{version} address", option=option) from error
    if address.version != version:
        raise MicrovmError(f"{text!r} is not an IPv{version} address", option=option)
    return str(address)


def _network(text: Any, *, option: str) -> Network:
    try:
        return ip_network(str(text))
    except ValueError as error:
        raise MicrovmError(f"{text!r} is not a network: {error}", option=option) from error


def _ports(text: Any, *, option: str) -> Ports:
    first, dash, last = str(text).partition("-")
    try:
        ports = (int(first), int(last) if dash else int(first))
    except ValueError:
        ports = (0, 0)
    if not 1 <= ports[0] <= ports[1] <= 65535:
        raise MicrovmError(f"{text!r} is neither a port, 1 to 65535, nor a range such as 8000-8010", option=option)
    return ports


def _allow(options: Mapping[str, Any]) -> Allow:
    proto, ports = options.get("proto"), options.get("ports")
    if ports is not None and proto is None:
        raise MicrovmError("ports are those of a protocol; give proto as well", option="egress.allow.proto")
    network = _network(options.get("cidr"), option="egress.allow.cidr")
    return Allow(network, proto, (0, 65535) if ports is None else _ports(ports, option="egress.allow.ports"))


def _forward(options: Mapping[str, Any]) -> Forward:
    ports = _ports(options.get("port"), option="forwards.port")
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
    sources = tuple(_network(text, option="forwards.sources") for text in options.get("sources") or ())
    return Forward(options.get("proto") or "tcp", ports, guest_port, host_address, sources or EVERYWHERE)


def refuse_conflicts(policies: Iterable[Policy]) -> dict[str, MicrovmError]:
    """Return an error for each VM that asks for what an earlier one has: a TAP, an address, a port of the host."""
    errors: dict[str, MicrovmError] = {}
    owners: dict[tuple[str, str], str] = {}
    forwarded: dict[tuple[str, int], list[tuple[str | None, str]]] = {}
    for policy in policies:
        for option in ("tap", "mac", "address", "address6"):
            value = getattr(policy, option)
            owner = owners.setdefault((option, value), policy.name) if value is not None else policy.name
            if owner != policy.name:
                errors[policy.name] = MicrovmError(f"{value} is that of VM '{owner}'", option=option, vm=policy.name)
        for forward in policy.forwards:
            for port in range(forward.ports[0], forward.ports[1] + 1):
                others = forwarded.setdefault((forward.proto, port), [])
                for host_address, owner in others:
                    if host_address is None or forward.host_address in (None, host_address):
                        whose = "the same VM" if owner == policy.name else f"VM '{owner}'"
                        errors[policy.name] = MicrovmError(
                            f"the host's port {port}/{forward.proto} is forwarded to {whose} already",
                            option="forwards.port",
                            vm=policy.name,
                        )
                others.append((forward.host_address, policy.name))
    return errors
