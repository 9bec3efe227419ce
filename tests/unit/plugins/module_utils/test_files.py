# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.files import is_own, locked_directory, replacing


def test_replaces_whole_with_the_mode(tmp_path: Path) -> None:
    target = tmp_path / "vm.json"
    target.write_text("old")
    with replacing(target, mode=0o640) as file:
        file.write(b"new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_is_secret_unless_asked_otherwise(tmp_path: Path) -> None:
    with replacing(tmp_path / "secret") as file:
        file.write(b"x")
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "vm.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as file:
        file.write(b"half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_runs_in_one_directory_take_turns(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked_directory(tmp_path / "new", make=False):
            order.append("second")

    with locked_directory(tmp_path / "new", make=True, mode=0o700):
        other = threading.Thread(target=second)
        other.start()
        other.join(timeout=0.1)
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert list((tmp_path / "new").iterdir()) == []


def test_who_waited_for_a_directory_that_is_gone_has_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "new"

    def second() -> None:
        with locked_directory(path, make=True):
            (path / "file").touch()

    with locked_directory(path, make=True):
        other = threading.Thread(target=second)
        other.start()
        other.join(timeout=0.1)
        path.rmdir()
    other.join()
    assert [file.name for file in path.iterdir()] == ["file"]


def test_a_directory_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    def fail(name: str, *, content: bool = False) -> bool:
        with pytest.raises(RuntimeError), locked_directory(tmp_path / name, make=True):
            if content:
                (tmp_path / name / "file").touch()
            raise RuntimeError
        return (tmp_path / name).exists()

    (tmp_path / "there").mkdir()
    assert (fail("new"), fail("there"), fail("used", content=True)) == (False, True, True)


def test_a_directory_that_is_missing_needs_no_lock(tmp_path: Path) -> None:
    with locked_directory(tmp_path / "missing", make=False):
        assert not (tmp_path / "missing").exists()


def test_what_is_written_does_not_go_where_another_put_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    directory = tmp_path / "of another"
    directory.mkdir()
    fchmod = os.fchmod

    def change_meanwhile(descriptor: int, mode: int) -> None:
        fchmod(descriptor, mode)
        temporary = next(directory.iterdir())
        temporary.unlink()
        temporary.symlink_to(victim)

    monkeypatch.setattr(os, "fchmod", change_meanwhile)
    with replacing(directory / "ready.json") as file:
        file.write(b"changed")
    assert victim.read_text() == "as it was"


def test_a_directory_is_own_that_no_other_can_write_to(tmp_path: Path) -> None:
    directory = tmp_path / "web"
    assert not is_own(directory)
    directory.mkdir(mode=0o700)
    assert is_own(directory)
    directory.chmod(0o770)
    assert not is_own(directory)
    directory.chmod(0o700)
    os.chown(directory, 4242, 4242)
    assert not is_own(directory)
