# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A disk as a file: made under its name only when it is whole, measured, and left alone while a VM has it open."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import qemu_img
from .errors import MicrovmError
from .files import staged
from .runner import Runner

# asm-generic/fcntl.h. Both QEMU and Cloud Hypervisor hold such a lock on a disk that they have open.
_F_OFD_GETLK = 36


@contextmanager
def new(path: Path) -> Iterator[Path]:
    """Yield the name of a file that becomes ``path``, but never in the place of a disk that a VM may have written to."""
    try:
        with staged(path, replace=False) as temporary:
            yield temporary
    except FileExistsError as error:
        raise MicrovmError(f"another run has just made '{path}', which is kept; run this again") from error


def copy(runner: Runner, source: Path, target: Path) -> None:
    """Copy a file with its holes, sharing blocks where the file system can. Raises CommandFailed."""
    runner.run(["cp", "--reflink=auto", "--sparse=always", "--", str(source), str(target)])


def format_of(path: Path) -> qemu_img.Format:
    """Return what a disk of this name is, which is ours to say: what is in it is the guest's."""
    return "qcow2" if path.suffix == ".qcow2" else "raw"


def size_of(path: Path) -> int:
    """Return how many bytes the guest sees. Raises MicrovmError for a file of another format than its name says."""
    try:
        return qemu_img.size_of(path, format_of(path))
    except ValueError as error:
        raise MicrovmError(f"{error}, though its name says so; put the right one back, or remove it") from error


def in_use(path: Path) -> bool:
    """Return whether a process holds a lock on any part of a file. See fcntl_locking(2), struct flock."""
    try:
        with path.open("r+b") as file:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            found = struct.unpack("hhqqi4x", fcntl.fcntl(file.fileno(), _F_OFD_GETLK, asked))
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return bool(found[0] != fcntl.F_UNLCK)


def refuse_in_use(path: Path, *, option: str) -> None:
    """Raise MicrovmError where a VM has the disk open."""
    if in_use(path):
        raise MicrovmError(f"'{path}' is open in a running VM; stop the VM first", option=option)
