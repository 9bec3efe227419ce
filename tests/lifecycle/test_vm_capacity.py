# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What runs of Ansible that meet on a host do to each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from vm_host import Host

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import capacity

MIB = 1 << 20


def test_two_runs_do_not_both_take_what_is_there_for_one(host: Host, tmp_path: Path) -> None:
    # Both are to have looked before one of them has put its VM on record, for which it asks the VMM's version.
    slow = tmp_path / "cloud-hypervisor"
    slow.write_text(f'#!/bin/sh\n[ "$1" != --version ] || sleep 2\nexec {host.vmm} "$@"\n')
    slow.chmod(0o755)

    def run(name: str) -> subprocess.Popen[str]:
        ratio = 100 * MIB / capacity.read_host(host.state_dir).memory
        options = host.options(name, memory={"size": "64MiB"}, capacity={"memory_ratio": ratio})
        options |= {"vmm": str(slow), "state_dir": str(host.state_dir), "run_dir": str(host.run_dir)}
        argv = ["ansible", "localhost", "-m", "microvm.cloud_hypervisor.ch_vm", "-a", json.dumps(options)]
        python = f"ansible_python_interpreter={sys.executable}"
        return subprocess.Popen([*argv, "-e", python], stdout=subprocess.PIPE, text=True)

    names = ["web", "db"]
    runs = [run(name) for name in names]
    said = [process.communicate()[0] for process in runs]
    assert sorted(process.returncode for process in runs) == [0, 2], said
    assert sum("does not fit" in words for words in said) == 1
    assert sorted(host.info(name)["state"] for name in names) == ["absent", "running"]
    assert not (host.state_dir / "reservations").exists()
