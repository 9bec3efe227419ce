# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that are either wholly there or not there at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


def sha256_of(path: Path) -> str:
    """Return a file's digest, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def nearest(path: Path) -> Path:
    """Return ``path``, or of what it is to be in, the innermost directory that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def fsync_file(path: Path) -> None:
    """Have on disk what another program has written to a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fsync_directory(path: Path) -> None:
    """Make the names in the directory ``path`` survive a power cut (see fsync(2), NOTES)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_own(directory: Path) -> bool:
    """Return whether a directory is there, and none but root and this process's user can put names into it.

    A VM's run directory is its VMM's user's: what lies there may be a link, or say what root must not believe.
    """
    try:
        status = directory.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


@contextmanager
def locked_directory(path: Path, *, make: bool, mode: int = 0o755) -> Iterator[None]:
    """Have runs that work in one directory take turns. The lock is on the directory itself, so that no file is left of it.

    With ``make``, the directory is made, with ``mode``, and goes again where the block fails with nothing in it. Without,
    one that is missing needs no lock.
    """
    made = False
    while True:
        if make:
            made = not path.exists()
            path.mkdir(mode=mode, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if make:
                continue
            yield
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever had the lock may have removed the directory: a lock on what has no name keeps nobody out.
            if not _is_still(path, descriptor):
                continue
            try:
                yield
            except BaseException:
                if made:
                    with suppress(OSError):  # there is something in it
                        path.rmdir()
                raise
            return
        finally:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def staged(path: Path, *, mode: int = 0o600, replace: bool = True) -> Iterator[Path]:
    """Yield the name of a new, empty file, for a tool to write to, that becomes ``path`` once the block ends well.

    Otherwise it vanishes. The content and the name are on disk when the block has ended. ``mode`` holds from the first
    byte on, unless the tool replaces the file. Without ``replace``, FileExistsError is raised where ``path`` is there by then.
    """
    with _staged(path, mode=mode, replace=replace) as (temporary, _descriptor):
        yield temporary


@contextmanager
def _staged(path: Path, *, mode: int, replace: bool) -> Iterator[tuple[Path, int]]:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        os.fchmod(descriptor, mode)
        yield temporary, descriptor
        os.fsync(descriptor)
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)
            temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    fsync_directory(path.parent)


@contextmanager
def replacing(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Yield a new file that takes the name ``path`` once the block ends well, as ``staged`` does.

    Its name is not opened again: in a directory of another user it may lead elsewhere by then.
    """
    with _staged(path, mode=mode, replace=True) as (_temporary, descriptor):
        file = os.fdopen(descriptor, "r+b", closefd=False)
        with file:
            yield file


def write(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Have a file with this content take the name ``path``, as ``staged`` does."""
    with replacing(path, mode=mode) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Have a record of ours, which root alone reads, take the name ``path``, as ``staged`` does."""
    write(path, json.dumps(value, indent=1, sort_keys=True).encode())
