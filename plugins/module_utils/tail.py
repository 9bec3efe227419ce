# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reading what a program appends to a file while it writes."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from .errors import MicrovmError

# What is read at once: its writer may be a VMM that was taken over.
_MOST = 64 << 20


class Tail:
    """What is written to ``path``, from its beginning on.

    A file that takes the name later, or one that was cut, is read from its beginning. A hole, which is what the rotation of
    the logs leaves in place of what it took away, is skipped (SEEK_DATA of lseek(2)).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Kept open, so that no other file gets its inode.
        self._descriptor: int | None = None
        self._position = 0

    def new(self) -> bytes:
        """Return what has come since the last call, up to 64 MiB; nothing where the file is missing.

        Raises MicrovmError for a link, a FIFO and the like, which a VMM that was taken over could put there.
        """
        try:
            there = self.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return b""
        if not stat.S_ISREG(there.st_mode):
            raise MicrovmError(f"'{self.path}' is no regular file; look at what made it")
        if self._descriptor is None or not os.path.samestat(there, os.fstat(self._descriptor)):
            self.close()
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        size = os.fstat(self._descriptor).st_size
        if size < self._position:
            self._position = 0
        try:
            start = os.lseek(self._descriptor, self._position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole is left
                raise
            return b""
        data = os.pread(self._descriptor, min(size - start, _MOST), start)
        self._position = start + len(data)
        return data

    def close(self) -> None:
        """Let go of the file; the next call begins anew."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor, self._position = None, 0


def text_of(path: Path) -> str:
    """Return what is in a file, as a Tail reads it. Raises MicrovmError, and OSError."""
    tail = Tail(path)
    try:
        return tail.new().decode(errors="replace")
    finally:
        tail.close()


def last_lines(text: str, count: int) -> list[str]:
    """Return the last lines of a text that say something, without the control characters of terminals."""
    lines = ("".join(letter for letter in line if letter.isprintable()).strip() for line in text.splitlines())
    return [line for line in lines if line][-count:]


def quoted(text: str) -> str:
    """Return the last lines of what a program has printed, for an error."""
    lines = last_lines(text, 5)
    return f"it said: {' / '.join(lines)}" if lines else "it said nothing"
