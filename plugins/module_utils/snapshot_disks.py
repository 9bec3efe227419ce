# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The disks in a snapshot: which are copied, what that takes, and the copying."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import disk_file
from .errors import MicrovmError
from .files import fsync_file, nearest
from .runner import Runner

DIRECTORY = "disks"
# What is left free beside what is written, in bytes.
_RESERVE = 64 << 20


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a VM, by its id, and whether a snapshot has a copy of it."""

    id: str
    path: Path
    copied: bool


def of(config: Mapping[str, Any], vm_directory: Path) -> list[Disk]:
    """Return a VM's disks. What the guest can write to is copied, and what is the VM's own.

    Raises MicrovmError, naming the disk, for one that would have to be and is no file.
    """
    disks = []
    for disk in config.get("disks") or ():
        if not disk.get("path"):
            raise MicrovmError(
                f"the disk '{disk['id']}' is another process's, which nothing here can copy", option="snapshot"
            )
        path = Path(disk["path"])
        copied = not disk.get("readonly") or path.parent == vm_directory
        if copied and not path.is_file():
            raise MicrovmError(
                f"the disk '{disk['id']}' is '{path}', which is no file: only disks that are files can be copied",
                option="snapshot",
            )
        disks.append(Disk(disk["id"], path, copied))
    return disks


def identity(path: Path) -> list[int]:
    """Return what tells whether a disk that is only read was changed: its size in bytes, its time of change in ns."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def allocated(paths: Iterable[Path]) -> int:
    """Return the bytes that files take up: holes in them take none."""
    return sum(path.stat().st_blocks * 512 for path in paths)


def check_space(place: Path, needed: int, *, what: str) -> None:
    """Raise MicrovmError where the file system of ``place``, or of the directory that is to hold it, is too full.

    Copies that share blocks take less than is asked for here: what they will take is known only once they are made.
    """
    existing = nearest(place)
    status = os.statvfs(existing)
    free = status.f_bavail * status.f_frsize
    if free < needed + _RESERVE:
        raise MicrovmError(
            f"{what} takes up to {needed >> 20} MiB, and '{existing}' has {free >> 20} MiB free, of which "
            f"{_RESERVE >> 20} stay so; make room, or remove snapshots (state=absent, or keep)",
            option="state_dir",
        )


def copy(runner: Runner, source: Path, target: Path) -> None:
    """Copy a disk with its holes, sharing blocks where the file system can. Raises CommandFailed."""
    disk_file.copy(runner, source, target)
    fsync_file(target)
