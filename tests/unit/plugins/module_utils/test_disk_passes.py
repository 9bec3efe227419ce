# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import disk_passes
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.disk_passes import BLOCK_BYTES, Source
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

PASS = disk_passes.HEADER.pack(disk_passes.PASS, 0, 0, 0)


class Both:
    """A file here and its copy, which is written as the frames come."""

    def __init__(self, directory: Path) -> None:
        self.here, self.copy = directory / "here", directory / "copy"
        self.here.touch()
        self.copy.touch()
        self.source = Source(self.here)

    def send(self, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Make a pass; ``meanwhile`` is called with each frame."""
        frames = bytearray()

        def take(frame: bytes) -> None:
            frames.extend(frame)
            meanwhile()

        sent = disk_passes.send_pass([self.source], take)
        assert receive(bytes(frames) + disk_passes.END_OF_PASSES, self.copy) == disk_passes.TAKEN
        return sent

    def write(self, offset: int, data: bytes) -> None:
        with self.here.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def same(self) -> bool:
        return self.here.read_bytes() == self.copy.read_bytes()


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


def receive(frames: bytes, *paths: Path) -> bytes:
    """Take frames; return what was answered."""
    answered = bytearray()
    targets = [os.open(path, os.O_RDWR) for path in paths]
    try:
        disk_passes.take_passes(io.BytesIO(frames).read, answered.extend, targets)
    finally:
        for target in targets:
            os.close(target)
    return bytes(answered)


def test_a_second_pass_sends_what_was_written_since(both: Both) -> None:
    both.write(0, os.urandom(20 * BLOCK_BYTES + 5))
    assert both.send() == 20 * BLOCK_BYTES + 5
    both.write(7 * BLOCK_BYTES + 9, b"x")
    both.write(20 * BLOCK_BYTES, b"end")
    assert both.send() == BLOCK_BYTES + 5
    assert both.same()
    assert both.send() == 0


def test_holes_stay_and_what_becomes_one_is_sent(both: Both) -> None:
    both.write(50 * BLOCK_BYTES, b"data")
    os.truncate(both.here, 1 << 40)
    assert both.send() == BLOCK_BYTES
    assert both.copy.stat().st_size == 1 << 40
    assert both.copy.stat().st_blocks <= both.here.stat().st_blocks
    # What was discarded: the file ends before it, and is as long as before, with a hole.
    os.truncate(both.here, 10 * BLOCK_BYTES)
    os.truncate(both.here, 60 * BLOCK_BYTES)
    both.send()
    assert both.same()


def test_space_that_was_set_aside_is_set_aside_there(both: Both) -> None:
    with both.here.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 8 * BLOCK_BYTES)
    assert both.send() == 0
    assert both.copy.stat().st_blocks * 512 >= 8 * BLOCK_BYTES


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_written_during_passes_is_there_after_one_without(both: Both, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311

    def change() -> None:
        match chance.randrange(12):
            case 0:
                os.truncate(both.here, chance.randrange(12 * BLOCK_BYTES))
            case 1:
                os.truncate(both.here, both.here.stat().st_size + chance.randrange(3 * BLOCK_BYTES))
            case 2:
                both.write(chance.randrange(10) * BLOCK_BYTES, bytes(BLOCK_BYTES))
            case _:
                both.write(chance.randrange(10 * BLOCK_BYTES), chance.randbytes(chance.randrange(1, 70000)))

    both.write(0, chance.randbytes(chance.randrange(10 * BLOCK_BYTES)))
    for _pass in range(4):
        both.send(change)
        change()
    both.send()
    assert both.same()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (disk_passes.HEADER.pack(b"B", 1, 0, 1) + b"x", "no part of the 1 disks"),
        (disk_passes.HEADER.pack(b"S", 7, 0, 0), "no part of the 1 disks"),
        (disk_passes.HEADER.pack(b"?", 0, 0, 0), "no part of the 1 disks"),
        (disk_passes.HEADER.pack(b"B", 0, 0, BLOCK_BYTES + 1), "no part of the 1 disks"),
        (disk_passes.HEADER.pack(b"B", 0, 10, 1) + b"x", "goes beyond their ends"),
        (disk_passes.HEADER.pack(b"B", 0, 0, 4) + b"x", "cut short"),
        (PASS, "cut short"),
        (b"B", "cut short"),
        (b"", "cut short"),
    ],
)
def test_what_is_no_pass_of_these_files_is_refused(tmp_path: Path, frames: bytes, message: str) -> None:
    disk, other = tmp_path / "disk", tmp_path / "other"
    disk.write_bytes(b"0123456789")
    other.touch()
    with pytest.raises(MicrovmError, match=message):
        receive(frames, disk)
    assert disk.read_bytes() == b"0123456789"
    assert other.read_bytes() == b""


def test_a_name_that_leads_elsewhere_is_not_followed(both: Both, tmp_path: Path) -> None:
    both.here.unlink()
    both.here.symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(OSError, match="symbolic links"):
        both.send()
    with suppress(FileNotFoundError):
        assert both.copy.read_bytes() == b""
