# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import unit_cgroup


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
def test_the_kernels_count_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, file: str, content: str, kills: int
) -> None:
    (tmp_path / "own").write_text(own)
    (tmp_path / "cgroup" / file).parent.mkdir(parents=True)
    (tmp_path / "cgroup" / file).write_text(content)
    monkeypatch.setattr(unit_cgroup, "_OWN", tmp_path / "own")
    monkeypatch.setattr(unit_cgroup, "_MOUNTS", tmp_path / "cgroup")
    assert unit_cgroup.oom_kills() == kills
