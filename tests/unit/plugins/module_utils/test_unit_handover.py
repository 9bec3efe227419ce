# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import unit_handover, vm_life
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.handover import Journal
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_config import Spec
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_life import Life
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_state import Vm
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_process import MainProcess


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths.of("web", state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    for directory in (paths.state, paths.run):
        directory.mkdir(parents=True)
    return paths


@pytest.fixture
def journal(paths: Paths) -> Journal:
    return Journal({}, (), f"{paths.api_socket}.1", timeout=1)


@pytest.fixture
def second(journal: Journal) -> Iterator[int]:
    """A process with the second VMM's command line."""
    argv = ["python3", "-c", "import time; time.sleep(60)", "--api-socket", f"path={journal.next}"]
    with subprocess.Popen(argv) as process:
        yield process.pid
        process.kill()


def test_the_second_vmm_is_found_in_the_unit_by_its_api(journal: Journal, second: int) -> None:
    found = None
    while found is None:  # while it is executed it has no command line
        found = unit_handover.successor(journal, os.getpid()).pid()
    assert found == second
    assert unit_handover.successor(Journal({}, (), "/none", timeout=1), os.getpid()).pid() is None
    assert unit_handover.successor(journal, None).pid() is None


def test_only_the_units_own_process_makes_it_the_main_one(second: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not unit_handover.UnitSuccessor(second).become()


def test_a_unit_that_ends_in_the_middle_has_lost_its_guest(paths: Paths, journal: Journal) -> None:
    vm = Vm(paths, MainProcess(0), HostRunner())
    vm_life.write(paths, Life("running"))
    log = paths.serial_log
    log.with_name("serial.log.old").write_text("said before")
    log.touch()
    Journal({}, (str(log),), journal.next, timeout=1).write(paths)
    spec = Spec(config={}, taps=())
    unit_handover.clear(vm, spec)
    unit_handover.clear(vm, spec)
    assert log.read_text() == "said before"
    ended = Journal.read(paths)
    assert ended is not None
    assert ended.place == "lost"
    life = vm_life.read(paths)
    assert life is not None
    assert (life.phase, life.error) == ("running", "lost in a move to another VMM: the unit ended in the middle of it")
