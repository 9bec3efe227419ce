# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reading what a program appends to a file while it writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class Tail:
    """What is written to ``path``, from its beginning on.

    A file that takes the name later, or one that was cut, is read from its beginning. A hole, which is what the rotation of
    the logs leaves in place of what it took away, is skipped (SEEK_DATA of lseek(2)).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None
        self._position = 0

    def new(self) -> bytes:
        """Return what has come since the last call; nothing where the file is missing."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        try:
            status = os.fstat(descriptor)
            identity = (status.st_dev, status.st_ino)
            if identity != self._file or status.st_size < self._position:
                self._file, self._position = identity, 0
            try:
                start = os.lseek(descriptor, self._position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nothing but a hole is left
                    raise
                return b""
            data = os.pread(descriptor, status.st_size - start, start)
            self._position = start + len(data)
            return data
        finally:
            os.close(descriptor)


def last_lines(text: str, count: int) -> list[str]:
    """Return the last lines of a text that say something, without the control characters of terminals."""
    lines = ("".join(letter for letter in line if letter.isprintable()).strip() for line in text.splitlines())
    return [line for line in lines if line][-count:]
