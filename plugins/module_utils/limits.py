# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a VM may use of its host, as settings of its unit. Pure.

Facts from systemd.resource-control(5), which has them do the same on cgroup v1 and v2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .errors import MicrovmError
from .sizes import parse_size

# What a VMM needs beside its guest's memory: itself, its devices' buffers, and the guest's disks in the page cache.
MEMORY_OVERHEAD = 256 << 20
NO_LIMIT = "infinity"
_WEIGHTS = {"cpu_weight": "CPUWeight", "io_weight": "IOWeight"}
_BANDWIDTHS = {"io_read_max": "IOReadBandwidthMax", "io_write_max": "IOWriteBandwidthMax"}


def guest_memory(config: Mapping[str, Any]) -> int:
    """Return the most memory in bytes that a VmConfig lets its guest have."""
    memory = config["memory"]
    zones: int = sum(zone.get("size", 0) + (zone.get("hotplug_size") or 0) for zone in memory.get("zones") or ())
    return int(memory.get("size") or 0) + int(memory.get("hotplug_size") or 0) + zones


def settings(options: Mapping[str, Any], config: Mapping[str, Any], *, directory: str) -> dict[str, str]:
    """Return the unit's settings. ``directory`` names the disk that the limits of IO are for: the one it lies on.

    Raises MicrovmError for what is no limit.
    """
    result: dict[str, str] = {}
    quota = options.get("cpu_quota")
    if quota is not None:
        if not re.fullmatch(r"[1-9][0-9]*%", str(quota)):
            raise MicrovmError(
                f"{quota!r} is no share of CPU time; write a percentage of one CPU, such as 150%",
                option="limits.cpu_quota",
            )
        result["CPUQuota"] = str(quota)
    for option, setting in _WEIGHTS.items():
        weight = options.get(option)
        if weight is not None:
            if not 1 <= weight <= 10000:
                raise MicrovmError(
                    f"{weight} is no weight; use 1 to 10000, where 100 is usual", option=f"limits.{option}"
                )
            result[setting] = str(weight)
    least = guest_memory(config)
    most = options.get("memory_max")
    if most != NO_LIMIT:
        size = least + MEMORY_OVERHEAD if most is None else parse_size(most, option="limits.memory_max")
        if size <= least and not config["memory"].get("hugepages"):
            raise MicrovmError(
                f"{size} bytes are asked for, and the guest alone may use {least}; a VMM takes some more, "
                f"{MEMORY_OVERHEAD >> 20}MiB by default",
                option="limits.memory_max",
            )
        result["MemoryMax"] = str(size)
    for option, setting in _BANDWIDTHS.items():
        if options.get(option) is not None:
            result[setting] = f"{directory} {parse_size(options[option], option=f'limits.{option}')}"
    if options.get("tasks_max") is not None:
        if options["tasks_max"] < 1:
            raise MicrovmError(f"{options['tasks_max']} tasks are none; use at least 1", option="limits.tasks_max")
        result["TasksMax"] = str(options["tasks_max"])
    return result


def for_two(options: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that let a second VMM be in the unit, and copy the guest's memory, until the first one ends."""
    most = settings(options, config, directory="/").get("MemoryMax")
    result = {"TasksMax": NO_LIMIT}
    if most is not None:
        result["MemoryMax"] = str(int(most) + guest_memory(config) + MEMORY_OVERHEAD)
    return result
