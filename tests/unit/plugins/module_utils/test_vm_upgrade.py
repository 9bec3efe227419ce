# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
from pathlib import Path

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_upgrade
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_state import Vm
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_process import MainProcess


def test_a_journal_that_the_vmm_could_have_written_is_not_followed(tmp_path: Path) -> None:
    paths = Paths.of("web", state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    for directory in (paths.state, paths.run):
        directory.mkdir(mode=0o700, parents=True)
    paths.record.write_text(json.dumps({"options": {"payload": {"kernel": "/k"}}, "config": {}}))
    victim = tmp_path / "victim"
    victim.write_text("")
    (paths.run / "upgrade.json").write_text(json.dumps({"taps": {}, "files": [], "next": str(victim)}))
    os.chown(paths.run, 4242, 4242)
    assert vm_upgrade.recover(Vm(paths, MainProcess(0), HostRunner())) == []
    assert victim.exists()
