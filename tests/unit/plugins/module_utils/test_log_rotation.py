# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import log_rotation
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.log_rotation import rotate
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.tail import Tail


def numbered(first: int, count: int) -> bytes:
    return b"".join(b"line %d of the log\n" % number for number in range(first, first + count))


def test_no_byte_is_lost_and_the_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    reader = Tail(log)
    heard = b""
    with log.open("wb", buffering=0) as writer:  # no O_APPEND, and never opened again, as the VMM
        for turn in range(5):
            writer.write(numbered(turn * 10_000, 10_000))
            heard += reader.new()
            assert rotate(log, size=100_000, keep=9)
            assert not rotate(log, size=100_000, keep=9)
        writer.write(b"the end\n")
    heard += reader.new()
    rotated = b"".join((tmp_path / f"serial.log.{number}").read_bytes() for number in (5, 4, 3, 2, 1))
    assert rotated == numbered(0, 50_000)
    assert heard.replace(b"\0", b"") == numbered(0, 50_000) + b"the end\n"
    assert log.stat().st_blocks * 512 < 16384, "what was rotated takes no room"


def test_as_many_as_asked_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    with log.open("wb", buffering=0) as writer:
        for turn in range(5):
            writer.write(b"%d" % turn * 5000)
            assert rotate(log, size=5000, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["serial.log", "serial.log.1", "serial.log.2"]
    assert (tmp_path / "serial.log.1").read_bytes() == b"4" * 5000
    log_rotation.remove(log)
    assert os.listdir(tmp_path) == []


def test_a_small_log_and_none_are_left(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    assert not rotate(log, size=1)
    log.write_bytes(b"short")
    assert not rotate(log, size=6)
    assert rotate(log, size=5)
    assert not rotate(log, size=1), "a hole is nothing to rotate"


def test_the_copy_belongs_to_whom_the_log_does(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_bytes(b"secret" * 1000)
    log.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(log, 12345, 12346)
    assert rotate(log, size=1)
    copy, original = (tmp_path / "serial.log.1").stat(), log.stat()
    assert stat.S_IMODE(copy.st_mode) == 0o640
    assert (copy.st_uid, copy.st_gid) == (original.st_uid, original.st_gid)


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret" * 1000)
    (tmp_path / "link").symlink_to("secret")
    with pytest.raises(MicrovmError, match="link' is a link"):
        rotate(tmp_path / "link", size=1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MicrovmError, match="no regular file"):
        rotate(tmp_path / "pipe", size=1)
    assert not (tmp_path / "link.1").exists()


def test_where_another_could_put_a_link_nothing_is_rotated(tmp_path: Path) -> None:
    (tmp_path / "vmm.log").write_bytes(numbered(0, 1000))
    os.chown(tmp_path, 4242, 4242)
    with pytest.raises(MicrovmError, match="others than root can write to"):
        rotate(tmp_path / "vmm.log", size=1)
    assert os.listdir(tmp_path) == ["vmm.log"]
