# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.sent_files import unpacked

DIGEST = "0a" * 32


def archive(place: Path, *members: tarfile.TarInfo) -> str:
    path = place / "contents.tar"
    with tarfile.open(path, "w") as tar:
        for member in members:
            member.size = 3 if member.isreg() else 0
            tar.addfile(member, io.BytesIO(b"key"))
    return str(path)


def test_files_are_there_for_the_block_only(tmp_path: Path) -> None:
    with unpacked(archive(tmp_path, tarfile.TarInfo(DIGEST)), tmp_path) as contents:
        assert contents is not None and (contents / DIGEST).read_bytes() == b"key"
        assert contents.stat().st_mode & 0o777 == 0o700
    assert not contents.exists()
    with unpacked(None, tmp_path) as nothing:
        assert nothing is None


@pytest.mark.parametrize(
    ("name", "kind"), [("../x", tarfile.REGTYPE), ("x", tarfile.REGTYPE), (DIGEST, tarfile.DIRTYPE)]
)
def test_an_archive_with_anything_else_is_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.type = kind
    with pytest.raises(MicrovmError, match="not a digest"), unpacked(archive(tmp_path, member), tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["contents.tar"]
