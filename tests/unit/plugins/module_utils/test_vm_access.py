# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import landlock, qemu_img, vm_access
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_access import Use
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_user import User


def overlay(path: Path, backing: str) -> Path:
    """Write the header of a qcow2 image."""
    name = os.fsencode(backing)
    path.write_bytes(
        b"QFI\xfb" + (3).to_bytes(4, "big") + (104).to_bytes(8, "big") + len(name).to_bytes(4, "big") + bytes(84) + name
    )
    return path


def config(**parts: Any) -> dict[str, Any]:
    return {"payload": {"kernel": "/k", "cmdline": "quiet"}, **parts}


def test_the_files_of_a_vm() -> None:
    disks = [{"id": "root", "path": "/d"}, {"id": "cidata", "path": "/c", "readonly": True}, {"id": "remote"}]
    consoles = {"serial": {"mode": "File", "file": "/s"}, "console": {"mode": "Pty", "file": "/dev/pts/1"}}
    assert vm_access.files(
        config(disks=disks, pmem=[{"id": "p", "file": "/p", "discard_writes": True}], **consoles)
    ) == [
        Use("payload.kernel", Path("/k")),
        Use("disks.root", Path("/d"), writes=True),
        Use("disks.cidata", Path("/c")),
        Use("pmem.p", Path("/p")),
        Use("serial.file", Path("/s"), writes=True),
    ]


def test_what_images_are_based_on(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(512))
    overlay(tmp_path / "middle.qcow2", "base.raw")
    top = overlay(tmp_path / "top.qcow2", str(tmp_path / "middle.qcow2"))
    disks = [
        {"id": "root", "path": str(top), "image_type": "Qcow2"},
        {"id": "raw", "path": str(top), "image_type": "Raw"},
    ]
    found = [use.path.name for use in vm_access.backing_files(config(disks=disks))]
    assert found == ["middle.qcow2", "base.raw"]


def test_images_that_are_based_on_each_other_have_an_end(tmp_path: Path) -> None:
    overlay(tmp_path / "a.qcow2", "b.qcow2")
    overlay(tmp_path / "b.qcow2", "a.qcow2")
    disks = [{"id": "root", "path": str(tmp_path / "a.qcow2"), "image_type": "Qcow2"}]
    assert [use.path.name for use in vm_access.backing_files(config(disks=disks))] == ["b.qcow2", "a.qcow2"]


def test_an_image_without_a_base(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"short")
    assert qemu_img.backing_file(tmp_path / "raw") is None
    (tmp_path / "qcow2").write_bytes(b"QFI\xfb" + bytes(100))
    assert qemu_img.backing_file(tmp_path / "qcow2") is None


def test_landlock_names_what_the_vmm_does_not_know_itself(tmp_path: Path) -> None:
    paths = Paths.of("web", state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    for directory in (paths.state, paths.run, tmp_path / "state/images"):
        directory.mkdir(parents=True)
    base = tmp_path / "base.raw"
    base.write_bytes(bytes(512))
    top = overlay(paths.state / "root.qcow2", str(base))
    disks = [{"id": "root", "path": str(top), "image_type": "Qcow2"}]
    restriction = landlock.restriction(config(disks=disks), paths)
    assert restriction["landlock_enable"] is True
    rules = {rule["path"]: rule["access"] for rule in restriction["landlock_rules"]}
    assert rules.pop("/sys/devices/virtual/net", "r") == "r"
    assert rules.pop("/dev/net/tun", "rw") == "rw"
    assert rules == {
        str(base): "r",
        str(tmp_path / "state/images"): "r",
        str(paths.state): "rw",
        str(paths.run): "rw",
    }


USER = User("vm-web", 4242, 4242)


def test_a_file_of_roots_is_given_and_taken_back(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"")
    (tmp_path / "link").symlink_to("disk")  # as those of LVM
    vm_access.give(Use("disks.root", tmp_path / "link", writes=True), USER)
    assert (disk.stat().st_uid, disk.stat().st_mode & 0o777) == (4242, 0o600)
    vm_access.take_back(config(disks=[{"id": "root", "path": str(tmp_path / "link")}]), USER)
    assert disk.stat().st_uid == 0


def test_another_users_file_is_not_given(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"")
    os.chown(disk, 4343, 4343)
    with pytest.raises(MicrovmError, match="belongs to the user 4343, and the VM would write to it"):
        vm_access.give(Use("disks.root", disk, writes=True), USER)
    assert disk.stat().st_uid == 4343


@pytest.mark.parametrize("name", ["link", "file", "sticky/link", "loop", "missing/../link"])
def test_nothing_of_roots_is_given_where_another_can_change_what_it_is(tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"")
    directory = tmp_path / "of another"
    (directory / "sticky").mkdir(parents=True)
    (directory / "link").symlink_to(secret)
    (directory / "file").hardlink_to(secret)
    (directory / "sticky/link").symlink_to(secret)
    (directory / "loop").symlink_to("loop")
    os.chown(directory / "sticky/link", 4242, 4242, follow_symlinks=False)
    (directory / "sticky").chmod(0o1777)
    if not name.startswith("sticky"):
        os.chown(directory, 4242, 4242)
    with pytest.raises(MicrovmError, match="others than root can change where"):
        vm_access.give(Use("serial.file", directory / name, writes=True), USER)
    assert secret.stat().st_uid == 0
    assert not (directory / "missing").exists()
