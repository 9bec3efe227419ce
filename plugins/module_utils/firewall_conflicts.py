# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What only one VM can have. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import MicrovmError
from .firewall_elements import group_id
from .port_ranges import parse_ports

_OWN = ("tap", "mac", "address", "address6")


@dataclass(slots=True)
class _Taken:
    """Who has what: TAPs and addresses by option, ports of the host with their addresses, and groups by number."""

    own: dict[tuple[str, str], str] = field(default_factory=dict)
    ports: dict[tuple[str, int], list[tuple[str | None, str]]] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)


def refuse_conflicts(vms: Iterable[Mapping[str, Any]]) -> dict[str, MicrovmError]:
    """Return an error for each VM that asks for what an earlier one has: a TAP, an address, a port of the host.

    ``vms`` are canonical options, which cost less to read than policies where there are many. What a refused VM asks for
    is free for the next.
    """
    errors: dict[str, MicrovmError] = {}
    taken = _Taken()
    for options in vms:
        try:
            _refuse(options, taken)
        except MicrovmError as error:
            errors[options["name"]] = error.for_vm(options["name"])
            continue
        name = options["name"]
        taken.own |= {(option, options[option]): name for option in _OWN if option in options}
        taken.groups |= {group_id(group): group for group in _groups(options)}
        for proto, port, host_address in _host_ports(options):
            taken.ports.setdefault((proto, port), []).append((host_address, name))
    return errors


def _refuse(options: Mapping[str, Any], taken: _Taken) -> None:
    for option in _OWN:
        if owner := taken.own.get((option, options.get(option, ""))):
            raise MicrovmError(f"{options[option]} is that of VM '{owner}'", option=option)
    for group in _groups(options):
        other = taken.groups.get(group_id(group), group)
        if other != group:
            raise MicrovmError(f"'{group}' and '{other}' happen to get one number; rename one", option="groups")
    own: dict[tuple[str, int], list[tuple[str | None, str]]] = {}
    for proto, port, host_address in _host_ports(options):
        for other_address, owner in (*taken.ports.get((proto, port), ()), *own.get((proto, port), ())):
            if other_address is None or host_address in (None, other_address):
                whose = "the same VM" if owner == options["name"] else f"VM '{owner}'"
                raise MicrovmError(
                    f"the host's port {port}/{proto} is forwarded to {whose} already", option="forwards.port"
                )
        own.setdefault((proto, port), []).append((host_address, options["name"]))


def _groups(options: Mapping[str, Any]) -> list[str]:
    return [*options.get("groups", ()), *((options.get("egress") or {}).get("groups") or ())]


def _host_ports(options: Mapping[str, Any]) -> Iterator[tuple[str, int, str | None]]:
    for forward in options.get("forwards", ()):
        first, last = parse_ports(forward["port"], option="forwards.port")
        for port in range(first, last + 1):
            yield forward.get("proto") or "tcp", port, forward.get("host_address")
