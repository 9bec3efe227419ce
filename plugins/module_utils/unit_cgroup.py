# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel counts for the cgroups of a VM's unit: memory in bytes, CPU time in seconds, and what it has killed.

Facts from cgroups(7) and the kernel's Documentation/admin-guide/cgroup-v2.rst (memory.current, memory.events, cpu.stat),
cgroup-v1/memory.rst (memory.usage_in_bytes, memory.oom_control) and cgroup-v1/cpuacct.rst (cpuacct.usage, nanoseconds).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_PROCESSES = Path("/proc")
_OWN = Path("/proc/self/cgroup")
_MOUNTS = Path("/sys/fs/cgroup")


def usage(pid: int, unit_end: str, mounts: Path = _MOUNTS) -> dict[str, float]:
    """Return ``memory_bytes`` and ``cpu_seconds`` of the unit whose name ends so, such as ``@web.service``, that a process is in.

    What is not known is left out; all of it, where the process is in no such unit: its cgroup is others', too.
    """
    try:
        membership = Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    places = cgroups(membership, unit_end, mounts)
    found: dict[str, float] = {}
    with suppress(KeyError, OSError):
        found["memory_bytes"] = int((places["memory"] / "memory.usage_in_bytes").read_text())
    with suppress(KeyError, OSError):
        found["cpu_seconds"] = int((places["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
    with suppress(KeyError, OSError):
        found["memory_bytes"] = int((places[""] / "memory.current").read_text())
    with suppress(KeyError, OSError, ValueError):
        found["cpu_seconds"] = int(_counts(places[""] / "cpu.stat")["usage_usec"]) / 1e6
    return found


def oom_kills(own: Path = _OWN, mounts: Path = _MOUNTS) -> int:
    """Return how many processes of this one's unit the kernel has killed for want of memory; 0 where it does not say.

    systemd tells of them on cgroup v2 alone.
    """
    places = cgroups(own.read_text(), "", mounts)
    for controller, file in (("memory", "memory.oom_control"), ("", "memory.events")):
        with suppress(KeyError, OSError):
            return int(_counts(places[controller] / file).get("oom_kill", 0))
    return 0


def peers(pid: int, processes: Path = _PROCESSES) -> list[int]:
    """Return the processes that are in the same cgroups as ``pid``, that one among them; none where it has ended."""

    def membership(process: Path) -> str | None:
        try:
            return (process / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None

    wanted = membership(processes / str(pid))
    others = [process for process in processes.iterdir() if process.name.isdigit()] if wanted is not None else []
    return sorted(int(process.name) for process in others if membership(process) == wanted)


def _counts(file: Path) -> dict[str, str]:
    return dict(line.split() for line in file.read_text().splitlines())


def cgroups(membership: str, unit_end: str, mounts: Path) -> Mapping[str, Path]:
    """Return the directories of a unit's cgroups by their controller, "" for cgroup v2, from /proc/PID/cgroup. Pure."""
    places = {}
    for line in membership.splitlines():
        _number, controllers, path = line.split(":", 2)
        if not path.endswith(unit_end):
            continue
        for controller in controllers.split(","):
            places[controller] = mounts / controller / path.lstrip("/")
    return places
