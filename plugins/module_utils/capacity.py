# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host has, what of it is promised to VMs, and which VMs do not fit beside those.

All VMs on record count, whether they run or not: one that is stopped will be started again. So do those that a call which
is under way is about to put on record.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from . import limits, qemu_img, reservations, vm_config, vm_record
from .errors import MicrovmError
from .files import nearest
from .sizes import parse_size
from .vm_paths import Paths

_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Demand:
    """What a VM is promised: memory in bytes, vCPUs, and the bytes that its disks may still take on the host's."""

    memory: int = 0
    vcpus: int = 0
    disk: int = 0

    def __add__(self, other: Demand) -> Demand:
        """Return what both together are promised."""
        return Demand(self.memory + other.memory, self.vcpus + other.vcpus, self.disk + other.disk)

    def at_least(self, other: Demand) -> Demand:
        """Return of each the greater."""
        return Demand(max(self.memory, other.memory), max(self.vcpus, other.vcpus), max(self.disk, other.disk))


@dataclass(frozen=True, slots=True)
class Host:
    """What a host has: memory in bytes, CPUs, and the bytes that are free where the state directory is."""

    memory: int
    vcpus: int
    disk_free: int


@dataclass(frozen=True, slots=True)
class Ratios:
    """How many times what the host has may be promised; None is any number of times."""

    memory_ratio: float | None = 1.5
    vcpu_ratio: float | None = None
    disk_ratio: float | None = 10.0


# The options that give them, for the argument specs of modules.
RATIO_OPTIONS = {ratio.name: {"type": "float", "default": ratio.default} for ratio in fields(Ratios)}


def read_host(state_dir: Path) -> Host:
    """Return what this host has (proc_meminfo(5), statvfs(3))."""
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    disk = os.statvfs(nearest(state_dir))
    return Host(int(fields["MemTotal"].split()[0]) << 10, os.cpu_count() or 1, disk.f_bavail * disk.f_frsize)


def promised(state_dir: Path) -> dict[str, Demand]:
    """Return what each VM is promised, on record or by a reservation; those whose record is damaged do not count."""
    found: dict[str, Demand] = {}
    for name in vm_record.known(state_dir):
        with suppress(MicrovmError):
            # The record is not where sockets are.
            record = vm_record.read(Paths.of(name, state_dir=state_dir, run_dir=state_dir))
            if record is not None:
                found[name] = of_config(record["config"])
    for reserved in reservations.read(state_dir):
        for name, demand in reserved.items():
            found[name] = Demand(**demand).at_least(found.get(name, Demand()))
    return found


def of_config(config: Mapping[str, Any]) -> Demand:
    """Return what a VmConfig promises. Disks that are not there yet do not count."""
    growth = 0
    for disk in config.get("disks") or ():
        if disk.get("path") and not disk.get("readonly"):
            with suppress(OSError, ValueError):
                # stat(2): blocks are of 512 bytes.
                growth += max(0, qemu_img.size_of_attached(disk) - Path(disk["path"]).stat().st_blocks * 512)
    return Demand(limits.guest_memory(config), int(config["cpus"]["max_vcpus"]), growth)


def demands(vms: Iterable[Mapping[str, Any]], before: Mapping[str, Demand]) -> dict[str, Demand]:
    """Return what VMs ask for that have no disks yet, by name; those on record may still take what they could ``before``.

    Raises MicrovmError for a size that is none.
    """
    wanted = {}
    for vm in vms:
        try:
            memory, disk = (parse_size(vm[key], option=f"vms.{key}") for key in ("memory", "disk"))
        except MicrovmError as error:
            raise error.for_vm(vm["name"]) from None
        wanted[vm["name"]] = Demand(memory, vm["vcpus"], before[vm["name"]].disk if vm["name"] in before else disk)
    return wanted


def facts(host: Host, demands: Mapping[str, Demand]) -> dict[str, int]:
    """Return what is told of a host: what it has, and what of it is promised."""
    total = sum(demands.values(), Demand())
    return {**asdict(host), **{f"promised_{name}": value for name, value in asdict(total).items()}}


@contextmanager
def admitted(
    items: Iterable[Mapping[str, Any]], ratios: Ratios, *, state_dir: Path, run_dir: Path, check_mode: bool
) -> Iterator[dict[str, MicrovmError]]:
    """Yield why VMs that are asked for, each by its options as ch_vm takes them, do not fit on this host, by name.

    What the others need is reserved for them until the block has ended, by when they are on record. What is wrong with
    the options themselves is for others to say.
    """
    wanted = {}
    for item in items:
        if item.get("payload") is not None and item.get("state") not in ("stopped", "absent"):
            with suppress(MicrovmError):
                paths = Paths.of(item["name"], state_dir=state_dir, run_dir=run_dir)
                wanted[item["name"]] = of_config(vm_config.parse(item, paths).config)
    with ExitStack() as reservation:
        refused: dict[str, MicrovmError] = {}
        if wanted:
            with nullcontext() if check_mode else reservations.taking_turns(state_dir):
                refused = refusals(wanted, promised(state_dir), read_host(state_dir), ratios)
                if not check_mode:
                    let_in = {name: asdict(demand) for name, demand in wanted.items() if name not in refused}
                    reservation.enter_context(reservations.held(state_dir, let_in))
        yield refused


def refusals(
    wanted: Mapping[str, Demand], before: Mapping[str, Demand], host: Host, ratios: Ratios
) -> dict[str, MicrovmError]:
    """Return why VMs do not fit, by name. They are looked at in order, each beside those that are there or were let in.

    A VM that is there and asks for no more than it has always fits.
    """
    refused: dict[str, MicrovmError] = {}
    let_in = dict(before)
    for name, demand in wanted.items():
        had = let_in.pop(name, Demand())
        others = sum(let_in.values(), Demand())
        error = _lacking(demand, had, others, host, ratios)
        if error is None:
            let_in[name] = demand
        else:
            refused[name] = error.for_vm(name)
            let_in[name] = had
    return refused


def _lacking(demand: Demand, had: Demand, others: Demand, host: Host, ratios: Ratios) -> MicrovmError | None:
    checks = (
        ("memory", demand.memory, had.memory, others.memory, host.memory, ratios.memory_ratio, "memory_ratio"),
        ("cpus", demand.vcpus, had.vcpus, others.vcpus, host.vcpus, ratios.vcpu_ratio, "vcpu_ratio"),
        ("disks", demand.disk, had.disk, others.disk, host.disk_free, ratios.disk_ratio, "disk_ratio"),
    )
    for option, asked, own, taken, there, ratio, setting in checks:
        if ratio is not None and asked > own and asked + taken > there * ratio:
            return MicrovmError(
                f"the VM does not fit: it asks for {_shown(option, asked)}, {_shown(option, taken)} are promised to others, "
                f"and the host has {_shown(option, there)}, times {ratio:g} by capacity.{setting}; ask for less, raise the "
                "ratio, or put the VM on another host",
                option=option,
            )
    return None


def _shown(option: str, amount: int) -> str:
    return f"{amount} vCPUs" if option == "cpus" else f"{-(-amount >> 20)}MiB"
