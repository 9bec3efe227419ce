# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import command_receive
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths.of("web", state_dir=tmp_path, run_dir=tmp_path / "run")
    paths.state.mkdir(parents=True)
    (paths.state / "root.raw").write_bytes(b"not yet")
    disks = [{"id": "root", "path": str(paths.state / "root.raw")}]
    paths.record.write_text(json.dumps({"options": {}, "config": {"disks": disks}}))
    return paths


def take(paths: Paths, member: tarfile.TarInfo, data: bytes = b"") -> None:
    """Take the disks from standard input, as sshd has it."""
    archive = paths.state / "archive"
    with tarfile.open(archive, "w") as tar:
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    stdin = os.dup(0)
    try:
        with archive.open("rb") as file:
            os.dup2(file.fileno(), 0)
        command_receive._disks(paths)
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)


def test_a_disk_is_taken(paths: Paths) -> None:
    take(paths, tarfile.TarInfo("root.raw"), b"the disk")
    assert (paths.state / "root.raw").read_bytes() == b"the disk"


def test_a_link_is_no_disk(paths: Paths, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("")
    secret.chmod(0o640)
    link = tarfile.TarInfo("root.raw")
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    with pytest.raises(MicrovmError, match="came as something else than a file"):
        take(paths, link)
    assert (paths.state / "root.raw").read_bytes() == b"not yet"
    assert secret.stat().st_mode & 0o777 == 0o640


def test_a_vmm_that_has_ended_is_told_of(paths: Paths) -> None:
    with pytest.raises(MicrovmError, match="VM 'web': no VMM waits for the guest any more: No such file"):
        command_receive._memory(paths)
