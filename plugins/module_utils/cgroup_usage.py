# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel counts for a process' cgroup: memory in bytes, CPU time in seconds.

Facts from cgroups(7) and the kernel's Documentation/admin-guide/cgroup-v2.rst (memory.current, cpu.stat), cgroup-v1/memory.rst
(memory.usage_in_bytes) and cgroup-v1/cpuacct.rst (cpuacct.usage, nanoseconds).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_MOUNTS = Path("/sys/fs/cgroup")


def of_unit(pid: int, unit_end: str, mounts: Path = _MOUNTS) -> dict[str, float]:
    """Return ``memory_bytes`` and ``cpu_seconds`` of the unit whose name ends so, such as ``@web.service``, that a process is in.

    What is not known is left out; all of it, where the process is in no such unit: its cgroup is others', too.
    """
    try:
        membership = Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    places = cgroups(membership, unit_end, mounts)
    usage: dict[str, float] = {}
    with suppress(KeyError, OSError):
        usage["memory_bytes"] = int((places["memory"] / "memory.usage_in_bytes").read_text())
    with suppress(KeyError, OSError):
        usage["cpu_seconds"] = int((places["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
    with suppress(KeyError, OSError):
        usage["memory_bytes"] = int((places[""] / "memory.current").read_text())
    with suppress(KeyError, OSError, ValueError):
        counts = dict(line.split() for line in (places[""] / "cpu.stat").read_text().splitlines())
        usage["cpu_seconds"] = int(counts["usage_usec"]) / 1e6
    return usage


def cgroups(membership: str, unit_end: str, mounts: Path) -> Mapping[str, Path]:
    """Return the directories of a unit's cgroups by their controller, "" for cgroup v2, from /proc/PID/cgroup."""
    places = {}
    for line in membership.splitlines():
        _number, controllers, path = line.split(":", 2)
        if not path.endswith(unit_end):
            continue
        for controller in controllers.split(","):
            places[controller] = mounts / controller / path.lstrip("/")
    return places
