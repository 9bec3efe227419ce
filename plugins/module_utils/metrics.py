# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known of the VMs of a host, in Prometheus' text format, for node_exporter's textfile collector.

Names and units by Prometheus' conventions (https://prometheus.io/docs/practices/naming/): base units, the unit as a suffix,
``_total`` on counters; the format by https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import files

Labels = Mapping[str, str]
STATES = ("running", "paused", "created", "stopped")
FILE = "microvm.prom"


@dataclass(slots=True)
class Family:
    """One metric with its samples, each of other labels."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    samples: list[tuple[Labels, float]] = field(default_factory=list)

    def add(self, value: float | None, **labels: str) -> None:
        """Add a sample; nothing where the value is not known."""
        if value is not None:
            self.samples.append((labels, value))


def families(vms: Mapping[str, Mapping[str, Any] | None]) -> list[Family]:
    """Return the metrics of VMs, given by name as ch_vm_info tells of them; None for one that could not be asked."""
    asked = Family("microvm_up", "gauge", "Whether the VM could be asked for its state.")
    state = Family("microvm_state", "gauge", "The VM's state: 1 for the one it is in.")
    died = Family("microvm_vmm_died", "gauge", "Whether the VMM ended without having been stopped.")
    uptime = Family("microvm_uptime_seconds", "gauge", "For how long the VMM has run.")
    vcpus = Family("microvm_vcpus", "gauge", "The VM's vCPUs.")
    memory = Family("microvm_memory_bytes", "gauge", "The memory that the guest has, the balloon's part left out.")
    balloon = Family("microvm_balloon_bytes", "gauge", "The memory that the balloon is to hold.")
    info = Family("microvm_info", "gauge", "The VMM's version, as a label.")
    devices: dict[str, Family] = {}
    cgroup = Family("microvm_cgroup_memory_bytes", "gauge", "The memory that the host counts for the VMM's unit.")
    cpu = Family("microvm_cgroup_cpu_seconds_total", "counter", "The CPU time that the host counts for the VMM's unit.")
    for name, facts in sorted(vms.items()):
        asked.add(float(facts is not None), vm=name)
        if facts is None:
            continue
        for known in STATES:
            state.add(float(facts.get("state") == known), vm=name, state=known)
        died.add(float(bool(facts.get("vmm_died"))), vm=name)
        uptime.add(facts.get("uptime"), vm=name)
        if facts.get("vmm_version"):
            info.add(1, vm=name, vmm_version=str(facts["vmm_version"]))
        config = facts.get("config") or {}
        vcpus.add((config.get("cpus") or {}).get("boot_vcpus"), vm=name)
        memory.add(facts.get("memory_actual_size"), vm=name)
        balloon.add((config.get("balloon") or {}).get("size"), vm=name)
        usage = facts.get("cgroup") or {}
        cgroup.add(usage.get("memory_bytes"), vm=name)
        cpu.add(usage.get("cpu_seconds"), vm=name)
        _add_counters(devices, name, facts.get("counters") or {})
    plain = [asked, state, died, uptime, vcpus, memory, balloon, info, cgroup, cpu]
    return [family for family in (*plain, *devices.values()) if family.samples]


def _add_counters(devices: dict[str, Family], vm: str, counters: Mapping[str, Mapping[str, float]]) -> None:
    """Add what vm.counters tells: by device id, counters of disks and NICs by name, such as ``rx_bytes``."""
    for device, values in sorted(counters.items()):
        for counter, value in sorted(values.items()):
            if "latency" in counter:  # a mean or an extreme, of a unit that no document names
                continue
            name = f"microvm_device_{re.sub('[^a-z0-9_]', '_', counter.lower())}_total"
            family = devices.setdefault(name, Family(name, "counter", f"The VMM's counter {counter}, by device."))
            family.add(value, vm=vm, device=device)


def text(metrics: Iterable[Family]) -> str:
    """Return the metrics as a text file."""
    lines = []
    for family in metrics:
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
        lines += [f"{family.name}{_labels(labels)} {_number(value)}" for labels, value in family.samples]
    return "".join(f"{line}\n" for line in lines)


def _labels(labels: Labels) -> str:
    escapes: Sequence[tuple[str, str]] = (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"))
    shown = []
    for name, value in labels.items():
        for what, escaped in escapes:
            value = value.replace(what, escaped)
        shown.append(f'{name}="{value}"')
    return "{" + ",".join(shown) + "}"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def write(directory: Path, metrics: Iterable[Family]) -> Path:
    """Replace the file in the textfile collector's directory, for any user to read; return its path."""
    path = directory / FILE
    files.write(path, text(metrics).encode(), mode=0o644)
    return path
