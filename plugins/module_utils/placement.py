# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which host a VM goes to. Pure.

One VM after the other is given the best host that has room: first those with the fewest hosts to choose from, then the
largest. That is not a search for the fullest use of all hosts: where room is short, a VM can be refused that another
order would have found a place for. It never moves a VM that has its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

from .capacity import Ratios
from .errors import MicrovmError
from .sizes import parse_size

Strategy = Literal["spread", "pack"]


@dataclass(frozen=True, slots=True)
class Demand:
    """What a VM takes: memory and disk in bytes, vCPUs; and what it asks of its place."""

    name: str
    memory: int
    vcpus: int
    disk: int
    # VMs of one group go to different hosts.
    anti_affinity: str | None = None
    # The hosts that it may go to; all where it is None.
    hosts: frozenset[str] | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Demand:
        """Return what a VM's options say. Raises MicrovmError, naming the VM, for a size that is none."""
        name = options["name"]
        try:
            memory, disk = (parse_size(options[key], option=f"vms.{key}") for key in ("memory", "disk"))
        except MicrovmError as error:
            raise error.for_vm(name) from None
        hosts = options.get("hosts")
        return cls(
            name,
            memory,
            options["vcpus"],
            disk,
            options.get("anti_affinity"),
            None if hosts is None else frozenset(hosts),
        )


@dataclass(frozen=True, slots=True)
class Host:
    """What ch_vm_info tells of a host: memory and disk space in bytes, vCPUs, and what of each is promised."""

    name: str
    memory: int
    promised_memory: int
    vcpus: int
    promised_vcpus: int
    disk_free: int
    promised_disk: int
    # The names of the VMs that are there.
    vms: frozenset[str] = frozenset()

    def with_vm(self, demand: Demand) -> Host:
        """Return the host as it is with one VM more."""
        return replace(
            self,
            promised_memory=self.promised_memory + demand.memory,
            promised_vcpus=self.promised_vcpus + demand.vcpus,
            promised_disk=self.promised_disk + demand.disk,
            vms=self.vms | {demand.name},
        )

    def left(self) -> Fraction:
        """Return what part of it is not promised: of memory or vCPUs, whichever is less. Below 0, it is promised twice."""
        return min(
            Fraction(total - promised, total) if total > 0 else Fraction(0)
            for total, promised in ((self.memory, self.promised_memory), (self.vcpus, self.promised_vcpus))
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each VM is to be, which of them are new there, and why each host cannot take the others."""

    placements: Mapping[str, str]
    new: frozenset[str]
    refused: Mapping[str, Mapping[str, str]]
    # As they are once the VMs are there.
    hosts: Mapping[str, Host]


def plan(
    demands: Iterable[Demand],
    hosts: Iterable[Host],
    placed: Mapping[str, str],
    *,
    strategy: Strategy = "spread",
    ratios: Ratios | None = None,
) -> Plan:
    """Give each VM that has no place one. The order of ``demands`` and ``hosts`` does not matter.

    ``ratios`` say how many times over what a host has may be promised, as for ch_vm, which has the last word.

    A VM that a host has is there, whatever ``placed`` says. ``placed`` counts for the others, even where its host is not
    among ``hosts``. Raises MicrovmError for a VM that two hosts have.
    """
    ratios = ratios or Ratios()
    wanted = sorted(demands, key=lambda demand: demand.name)
    rooms = {host.name: host for host in sorted(hosts, key=lambda host: host.name)}
    there = _there(rooms)
    placements = {}
    for demand in wanted:
        where = there.get(demand.name, placed.get(demand.name))
        if where is not None:
            placements[demand.name] = where
            if demand.name not in there and where in rooms:
                rooms[where] = rooms[where].with_vm(demand)
    groups = {demand.name: demand.anti_affinity for demand in wanted}
    new, refused = set(), {}
    for demand in sorted((demand for demand in wanted if demand.name not in placements), key=_order):
        reasons = {name: _obstacle(demand, host, placements, groups, ratios) for name, host in rooms.items()}
        fitting = [name for name, reason in reasons.items() if reason is None]
        if not fitting:
            refused[demand.name] = {name: reason for name, reason in reasons.items() if reason is not None}
            continue
        sign = -1 if strategy == "spread" else 1
        chosen = min(fitting, key=lambda name: (sign * rooms[name].with_vm(demand).left(), name))
        placements[demand.name] = chosen
        rooms[chosen] = rooms[chosen].with_vm(demand)
        new.add(demand.name)
    return Plan(dict(sorted(placements.items())), frozenset(new), dict(sorted(refused.items())), rooms)


def _there(rooms: Mapping[str, Host]) -> dict[str, str]:
    there: dict[str, str] = {}
    for host in rooms.values():
        for vm in sorted(host.vms):
            if vm in there:
                raise MicrovmError(
                    f"both '{there[vm]}' and '{host.name}' have a VM of this name; rename or tear down one of them",
                    vm=vm,
                )
            there[vm] = host.name
    return there


def _order(demand: Demand) -> tuple[float, int, int, int, str]:
    choice = float("inf") if demand.hosts is None else len(demand.hosts)
    return (choice, -demand.memory, -demand.vcpus, -demand.disk, demand.name)


def _obstacle(
    demand: Demand, host: Host, placements: Mapping[str, str], groups: Mapping[str, str | None], ratios: Ratios
) -> str | None:
    """Return why the host cannot take the VM; None where it can."""
    if demand.hosts is not None and host.name not in demand.hosts:
        return f"is none of its hosts, {', '.join(sorted(demand.hosts))}"
    if demand.anti_affinity is not None:
        for name, where in sorted(placements.items()):
            if where == host.name and groups[name] == demand.anti_affinity:
                return f"has '{name}', of the same anti_affinity '{demand.anti_affinity}'"
    checks = (
        (_mib, "memory", demand.memory, host.promised_memory, host.memory, ratios.memory_ratio),
        (str, "vCPUs", demand.vcpus, host.promised_vcpus, host.vcpus, ratios.vcpu_ratio),
        (_mib, "free disk space", demand.disk, host.promised_disk, host.disk_free, ratios.disk_ratio),
    )
    for shown, what, asked, promised, there, ratio in checks:
        if ratio is not None and asked + promised > there * ratio:
            return (
                f"has {shown(there)} {what}, times {ratio:g}, and {shown(promised)} promised; it takes {shown(asked)}"
            )
    return None


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def table(result: Plan, demands: Iterable[Demand]) -> list[str]:
    """Return the plan for people, a line each: the VMs with their places, then what the hosts have left."""
    lines = [f"{'VM':<24} {'HOST':<16} {'':<9} {'MEMORY':>10} {'VCPUS':>6} {'DISK':>12}  ANTI-AFFINITY"]
    for demand in sorted(demands, key=lambda demand: demand.name):
        how = "refused" if demand.name in result.refused else "new" if demand.name in result.new else "stays"
        where = result.placements.get(demand.name, "-")
        takes = f"{_mib(demand.memory):>10} {demand.vcpus:>6} {_mib(demand.disk):>12}"
        lines.append(f"{demand.name:<24} {where:<16} {how:<9} {takes}  {demand.anti_affinity or '-'}")
    for name, host in result.hosts.items():
        has = f"{_mib(host.memory):>10} {host.vcpus:>6} {_mib(host.disk_free):>12}"
        promised = f"{_mib(host.promised_memory):>10} {host.promised_vcpus:>6} {_mib(host.promised_disk):>12}"
        lines += [f"{'':<24} {name:<16} {'has':<9} {has}", f"{'':<24} {name:<16} {'promised':<9} {promised}"]
    return lines


def refusal(result: Plan) -> str:
    """Return for people why VMs have no place, host by host."""
    return "; ".join(
        f"VM '{vm}' fits nowhere: {', '.join(f'{host} {reason}' for host, reason in reasons.items()) or 'no host answered'}"
        for vm, reasons in result.refused.items()
    )
