# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_life
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_life import Life
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths

EXITED = {"SERVICE_RESULT": "success", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}
KILLED = {"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL"}
DUMPED = {"SERVICE_RESULT": "core-dump", "EXIT_CODE": "dumped", "EXIT_STATUS": "ABRT"}
FAILED = {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "1"}
NOT_RUN = {"SERVICE_RESULT": "exit-code"}
RUNNING, STARTING = Life("running"), Life("starting", error="no kernel")


@pytest.mark.parametrize(
    ("life", "result", "oom_kills", "reason", "detail"),
    [
        (RUNNING, EXITED, 0, "guest_shutdown", None),
        (RUNNING, KILLED, 0, "crashed", "signal KILL"),
        (RUNNING, DUMPED, 0, "crashed", "signal ABRT"),
        (RUNNING, FAILED, 0, "crashed", "exit status 1"),
        (RUNNING, KILLED, 1, "oom_killed", "the unit's memory_max, or the host's memory, was used up"),
        (Life("running", error="lost on its way"), EXITED, 0, "crashed", "lost on its way"),
        (STARTING, NOT_RUN, 0, "start_failed", "no kernel"),
        (Life("starting"), FAILED, 0, "start_failed", "exit status 1"),
        (Life("starting"), NOT_RUN, 0, "start_failed", "exit-code"),
        (None, NOT_RUN, 0, "start_failed", "exit-code"),
        (Life("stopping", stopped_by="power_button"), EXITED, 0, "stopped", "power_button"),
        (Life("stopping"), {**KILLED, "EXIT_STATUS": "TERM"}, 0, "stopped", "term"),
    ],
)
def test_how_a_unit_ended(
    life: Life | None, result: Mapping[str, str], oom_kills: int, reason: str, detail: str | None
) -> None:
    ended = vm_life.ended(life, result, oom_kills=oom_kills)
    assert (ended.phase, ended.reason, ended.detail) == ("ended", reason, detail)


def test_systemd_itself_may_know_of_the_want_of_memory() -> None:
    assert vm_life.ended(RUNNING, {**KILLED, "SERVICE_RESULT": "oom-kill"}, oom_kills=0).reason == "oom_killed"


@pytest.mark.parametrize(
    ("life", "shut_down", "reason"),
    [
        (Life("running"), True, "guest_shutdown"),
        (Life("running"), False, "crashed"),
        (Life("starting"), False, "start_failed"),
        (Life("stopping"), False, "stopped"),
        (Life("ended", reason="oom_killed"), False, "oom_killed"),
    ],
)
def test_what_no_one_saw_end(life: Life, shut_down: bool, reason: str, tmp_path: Path) -> None:
    paths = Paths("web", tmp_path, tmp_path / "run")
    vm_life.write(paths, life)
    lost = vm_life.lost(vm_life.read(paths), shut_down=shut_down)
    assert lost is not None
    assert lost.reason == reason


def test_what_ran_when_the_host_went_down() -> None:
    lost = vm_life.lost(Life("running", boot_id="another"), shut_down=False)
    assert lost is not None
    assert lost.reason == "host_down"
    assert vm_life.lost(None, shut_down=False) is None


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    paths = Paths("web", tmp_path, tmp_path / "run")
    assert vm_life.read(paths) is None
    vm_life.write(paths, Life("starting", held=True, grace=2.5))
    life = vm_life.read(paths)
    assert life is not None
    assert (life.phase, life.held, life.grace, life.of_this_boot) == ("starting", True, 2.5, True)
    paths.life.write_text("{")
    assert vm_life.read(paths) is None


def test_nothing_is_kept_of_a_vm_that_was_removed(tmp_path: Path) -> None:
    paths = Paths("web", tmp_path / "gone", tmp_path / "run")
    vm_life.write(paths, Life("ended"))
    assert not paths.state.exists()
