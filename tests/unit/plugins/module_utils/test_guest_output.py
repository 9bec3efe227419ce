# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.guest_output import attach, own_file
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths.of("web", state_dir=tmp_path, run_dir=tmp_path)
    paths.run.mkdir()
    return paths


def test_a_pty_of_the_vmms_user_alone_is_attached_to(paths: Paths) -> None:
    main, line = os.openpty()
    try:
        config = {"mode": "Pty", "file": os.ttyname(line)}
        os.close(attach(config, paths))
        os.chown(paths.run, 4242, 4242)
        with pytest.raises(MicrovmError, match="no pty of its user's"):
            attach(config, paths)
    finally:
        os.close(main)
        os.close(line)


@pytest.mark.parametrize("file", ["/dev/null", "/dev/pts/../null", "/etc/hostname", None])
def test_nothing_else_is_a_pty(paths: Paths, file: str | None) -> None:
    with pytest.raises(MicrovmError, match="no pty of its user's"):
        attach({"mode": "Pty", "file": file}, paths)


def test_another_users_file_is_not_read(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    assert own_file({"file": str(tmp_path / "log")}, paths) == tmp_path / "log"
    os.chown(paths.run, 4242, 4242)
    with pytest.raises(MicrovmError, match="not its user's"):
        own_file({"file": str(tmp_path / "log")}, paths)
