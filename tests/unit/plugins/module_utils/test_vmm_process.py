# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_process import DetachedProcess


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "web").mkdir(mode=0o700)
    return tmp_path / "web"


def test_a_process_is_known_again_unless_another_user_could_say_so(run: Path) -> None:
    process = DetachedProcess(run, api_socket=run / "api.sock", log=run / "vmm.log")
    pid = process.start(["sh", "-c", "read forever < /dev/tty || sleep 60", str(run / "api.sock")])
    try:
        assert process.pid() == pid
        os.chown(run, 4242, 4242)
        assert process.pid() is None
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
