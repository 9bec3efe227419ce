# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import fat_disk
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.fat_disk import Content, Difference


def test_what_differs_is_told_by_path() -> None:
    old, new = Content.of(b"old"), Content.of(b"new")
    before = {"kept": old.sha256, "gone": old.sha256, "changed": old.sha256}
    found = fat_disk.difference(before, {"kept": old, "changed": new, "added": new})
    assert found == Difference(("added",), ("gone",), ("changed",))


def test_a_disk_is_known_by_its_record(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    wanted = {"a/b": Content.of(b"1"), "c": Content.of(b"2")}
    assert fat_disk.built_from(disk, None) is None
    record = fat_disk.write(disk, fat_disk.layout(wanted, label="CIDATA", option="cidata"), wanted)
    assert fat_disk.built_from(disk, record) == {path: content.sha256 for path, content in wanted.items()}
    for other in ({**record, "size": 1}, {**record, "mtime_ns": 1}):
        assert fat_disk.built_from(disk, other) is None
    disk.chmod(0o640)  # as ch_vm makes it, for the VM's user to read
    assert fat_disk.built_from(disk, record) is not None
    for mode in (0o644, 0o660, 0o602):
        disk.chmod(mode)
        assert fat_disk.built_from(disk, record) is None
    disk.unlink()
    assert fat_disk.built_from(disk, record) is None


def test_a_files_digest_follows_its_content(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"one")
    first = Content.of_file(path)
    path.write_bytes(b"three")
    assert first.sha256 == Content.of(b"one").sha256 and Content.of_file(path).sha256 == Content.of(b"three").sha256


def test_what_fat_cannot_hold_is_refused_by_option() -> None:
    for path in ("a:b", "x/con?"):
        with pytest.raises(MicrovmError) as caught:
            fat_disk.layout({path: Content.of(b"")}, label="CIDATA", option="service")
        assert caught.value.option == "service"
