# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rotating a log that its writer keeps open and never opens again.

Cloud Hypervisor v53.0 opens the file of a serial port without O_APPEND (vmm/src/console_devices.rs: File::create), and knows no
signal to open it anew. logrotate's copytruncate would lose what is written between its copy and its cut, and the writer goes on
at its old offset: the file is as long as before at once, so that each run would rotate it again. Here the file keeps its
length: what was copied is given back to the file system as a hole (fallocate(2), FALLOC_FL_PUNCH_HOLE), and nothing is lost.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from .errors import MicrovmError
from .files import is_own, staged

DEFAULT_KEEP = 4
# linux/falloc.h
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_BLOCK = 1 << 20


def rotate(path: Path, *, size: int, keep: int = DEFAULT_KEEP) -> bool:
    """Move what a log has to ``PATH.1``, and that to ``PATH.2`` up to ``keep``, where it has at least ``size`` bytes.

    Return whether it did. The last line may go on in the log. Raises MicrovmError for what is no regular file, on a file
    system without holes, and in a directory in which another user could put a link in the place of what is written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise MicrovmError(f"'{path}' is a link; logs are files of their own") from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MicrovmError(f"'{path}' is no regular file, and is not rotated")
        if not is_own(path.parent):
            raise MicrovmError(
                f"'{path}' is not rotated, since others than root can write to '{path.parent}'; have the log in a directory "
                "that is root's alone"
            )
        start = _first_data(descriptor)
        end = status.st_size
        if start is None or end - start < size:
            return False
        with staged(path.with_name(f"{path.name}.1"), mode=stat.S_IMODE(status.st_mode)) as copy:
            os.chown(copy, status.st_uid, status.st_gid)
            with copy.open("wb") as file:
                for offset in range(start, end, _BLOCK):
                    file.write(os.pread(descriptor, min(_BLOCK, end - offset), offset))
            _shift(path, keep)
        _punch(descriptor, end, path)
        return True
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a log and what was rotated out of it."""
    path.unlink(missing_ok=True)
    for rotated in _rotated(path):
        rotated.unlink(missing_ok=True)


def _rotated(path: Path) -> list[Path]:
    """Return the rotated logs, the newest first."""
    numbers = []
    for name in os.listdir(path.parent) if path.parent.is_dir() else ():
        number = name.removeprefix(f"{path.name}.")
        if name != number and number.isascii() and number.isdigit():
            numbers.append(int(number))
    return [path.with_name(f"{path.name}.{number}") for number in sorted(numbers)]


def _shift(path: Path, keep: int) -> None:
    """Give each rotated log the next number; those beyond ``keep`` go."""
    for rotated in reversed(_rotated(path)):
        number = int(rotated.suffix[1:]) + 1
        if number > keep:
            rotated.unlink()
        else:
            rotated.rename(path.with_name(f"{path.name}.{number}"))


def _first_data(descriptor: int) -> int | None:
    """Return where the file's data begins, after the hole of an earlier rotation; None where it has none.

    A hole has whole blocks: the last block of what was taken away may be left, as zeros.
    """
    try:
        start = os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    block = os.pread(descriptor, _BLOCK, start)
    return start + len(block) - len(block.lstrip(b"\0"))


def _punch(descriptor: int, end: int, path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, 0, end) != 0:
        number = ctypes.get_errno()
        with suppress(OSError):
            path.with_name(f"{path.name}.1").unlink()
        raise MicrovmError(f"'{path}' cannot be rotated: its file system has no holes ({os.strerror(number)})")
