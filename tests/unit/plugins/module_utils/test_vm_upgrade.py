# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_upgrade
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.handover import Journal
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_state import Vm
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_process import MainProcess


def test_a_journal_is_read_only_where_root_alone_writes(tmp_path: Path) -> None:
    paths = Paths.of("web", state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    for directory in (paths.state, paths.run):
        directory.mkdir(mode=0o700, parents=True)
    paths.record.write_text(json.dumps({"options": {"name": "web", "payload": {"kernel": "/k"}}, "config": {}}))
    victim = tmp_path / "victim"
    victim.write_text("")
    journal = Journal({}, (), str(victim), timeout=1)
    journal.write(paths)
    vm = Vm(paths, MainProcess(0), HostRunner())
    # As a VMM that was taken over could have it, in the directory that is its own.
    (paths.state / "upgrade.json").rename(paths.run / "upgrade.json")
    assert vm_upgrade.recover(vm) == []
    assert victim.exists()
    (paths.run / "upgrade.json").rename(paths.state / "upgrade.json")
    assert vm_upgrade.recover(vm) == ["cleaned up after a move to another VMM, which neither VMM has survived"]
    assert not victim.exists()
    assert Journal.read(paths) is None
