# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from pathlib import Path

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import cgroup_usage

V1 = """\
9:memory:/microvm.slice/microvm@web.service
4:cpu,cpuacct:/microvm.slice/microvm@web.service
1:name=systemd:/microvm.slice/microvm@web.service
0::/microvm.slice/microvm@web.service
"""


def test_the_cgroups_of_a_unit() -> None:
    places = cgroup_usage.cgroups(V1, "@web.service", Path("/m"))
    assert places["memory"] == Path("/m/memory/microvm.slice/microvm@web.service")
    assert places["cpuacct"] == Path("/m/cpuacct/microvm.slice/microvm@web.service")
    assert places[""] == Path("/m/microvm.slice/microvm@web.service")
    assert cgroup_usage.cgroups(V1, "@other.service", Path("/m")) == {}


def test_both_versions(tmp_path: Path) -> None:
    unit = Path("/proc/self/cgroup").read_text().splitlines()[-1].split(":", 2)[2].lstrip("/")
    (tmp_path / unit).mkdir(parents=True, exist_ok=True)
    (tmp_path / unit / "memory.current").write_text("4096\n")
    (tmp_path / unit / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    assert cgroup_usage.of_unit(os.getpid(), "", tmp_path) == {"memory_bytes": 4096, "cpu_seconds": 1.5}


def test_this_machine_s() -> None:
    usage = cgroup_usage.of_unit(os.getpid(), "")
    assert usage.keys() <= {"memory_bytes", "cpu_seconds"}
    assert all(value >= 0 for value in usage.values())


def test_a_process_that_is_gone_or_in_no_unit() -> None:
    assert cgroup_usage.of_unit(os.getpid(), "@nosuch.service") == {}
    assert cgroup_usage.of_unit(1 << 22, "") == {}
