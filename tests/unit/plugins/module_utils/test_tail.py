# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import tail
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.tail import Tail, last_lines


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_only_what_is_new_comes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Tail(path)
    assert log.new() == b""
    append(path, b"one")
    assert log.new() == b"one"
    append(path, b"two")
    assert log.new() == b"two"
    assert log.new() == b""


def test_a_file_that_was_cut_or_replaced_comes_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Tail(path)
    append(path, b"a long line")
    log.new()
    path.write_bytes(b"cut")
    assert log.new() == b"cut"
    path.unlink()
    append(path, b"cut and new")
    assert log.new() == b"cut and new"


def test_a_hole_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.seek(1 << 20)
        file.write(b"after the hole")
    log = Tail(path)
    assert log.new() == b"after the hole"
    os.truncate(path, 2 << 20)
    assert log.new().strip(b"\0") == b""


def test_a_link_is_not_followed_and_a_fifo_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "log").symlink_to("secret")
    os.mkfifo(tmp_path / "fifo")
    for name in ("log", "fifo"):
        with pytest.raises(MicrovmError, match="is no regular file"):
            Tail(tmp_path / name).new()


def test_what_is_huge_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_MOST", 4)
    (tmp_path / "log").write_bytes(b"four and more")
    log = Tail(tmp_path / "log")
    assert [log.new(), log.new()] == [b"four", b" and"]


def test_the_last_lines_are_what_can_be_read() -> None:
    assert last_lines("one\n\n\x1b[1mtwo\x1b[0m\r\n  \nthree \n", 2) == ["[1mtwo[0m", "three"]
    assert last_lines("", 5) == []
