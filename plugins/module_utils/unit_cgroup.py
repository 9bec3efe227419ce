# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel counts for the cgroup that this process is in; the processes of one unit are in one.

Facts from the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

from pathlib import Path

_OWN = Path("/proc/self/cgroup")
_MOUNTS = Path("/sys/fs/cgroup")


def oom_kills() -> int:
    """Return how many processes of this cgroup the kernel has killed for want of memory; 0 where it does not say.

    systemd tells of them on cgroup v2 alone.
    """
    for line in _OWN.read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            file = _MOUNTS / "memory" / path.lstrip("/") / "memory.oom_control"
        elif controllers == "":
            file = _MOUNTS / path.lstrip("/") / "memory.events"
        else:
            continue
        try:
            counts = dict(entry.split() for entry in file.read_text().splitlines())
        except OSError:
            continue
        return int(counts.get("oom_kill", 0))
    return 0
