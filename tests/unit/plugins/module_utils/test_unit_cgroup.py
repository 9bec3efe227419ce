# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import unit_cgroup

V1 = """\
9:memory:/microvm.slice/microvm@web.service
4:cpu,cpuacct:/microvm.slice/microvm@web.service
1:name=systemd:/microvm.slice/microvm@web.service
0::/microvm.slice/microvm@web.service
"""


def test_the_cgroups_of_a_unit() -> None:
    places = unit_cgroup.cgroups(V1, "@web.service", Path("/m"))
    assert places["memory"] == Path("/m/memory/microvm.slice/microvm@web.service")
    assert places["cpuacct"] == Path("/m/cpuacct/microvm.slice/microvm@web.service")
    assert places[""] == Path("/m/microvm.slice/microvm@web.service")
    assert unit_cgroup.cgroups(V1, "@other.service", Path("/m")) == {}


def test_both_versions(tmp_path: Path) -> None:
    unit = Path("/proc/self/cgroup").read_text().splitlines()[-1].split(":", 2)[2].lstrip("/")
    (tmp_path / unit).mkdir(parents=True, exist_ok=True)
    (tmp_path / unit / "memory.current").write_text("4096\n")
    (tmp_path / unit / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    assert unit_cgroup.usage(os.getpid(), "", tmp_path) == {"memory_bytes": 4096, "cpu_seconds": 1.5}


def test_this_machine_s() -> None:
    usage = unit_cgroup.usage(os.getpid(), "")
    assert usage.keys() <= {"memory_bytes", "cpu_seconds"}
    assert all(value >= 0 for value in usage.values())


def test_a_process_that_is_gone_or_in_no_unit() -> None:
    assert unit_cgroup.usage(os.getpid(), "@nosuch.service") == {}
    assert unit_cgroup.usage(1 << 22, "") == {}


@pytest.mark.parametrize(
    ("own", "file", "content", "kills"),
    [
        (
            "4:memory:/system.slice/a.service\n0::/a\n",
            "memory/system.slice/a.service/memory.oom_control",
            "under_oom 0\noom_kill 2\n",
            2,
        ),
        ("0::/system.slice/a.service\n", "system.slice/a.service/memory.events", "oom 3\noom_kill 1\n", 1),
        ("0::/a\n", "a/memory.events", "oom 3\n", 0),
        ("0::/missing\n", "a/memory.events", "oom_kill 1\n", 0),
        ("2:cpu:/a\n", "a/memory.events", "oom_kill 1\n", 0),
    ],
)
def test_the_kernels_count_of_kills_is_read(tmp_path: Path, own: str, file: str, content: str, kills: int) -> None:
    (tmp_path / "own").write_text(own)
    (tmp_path / "cgroup" / file).parent.mkdir(parents=True)
    (tmp_path / "cgroup" / file).write_text(content)
    assert unit_cgroup.oom_kills(tmp_path / "own", tmp_path / "cgroup") == kills


def test_the_processes_in_the_same_cgroups(tmp_path: Path) -> None:
    for pid, place in ((10, "/a"), (9, "/a"), (11, "/a/b"), ("self", "/a")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(f"0::{place}\n")
    assert unit_cgroup.peers(10, tmp_path) == [9, 10]
    assert unit_cgroup.peers(12, tmp_path) == []
