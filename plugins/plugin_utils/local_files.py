# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What files on the controller hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..module_utils.files import sha256_of


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file's digest (SHA-256), its size in bytes, and where its plain content is."""

    sha256: str
    size: int
    path: Path


def walk(source: Path, decrypted: Callable[[Path], Path]) -> dict[str, LocalFile]:
    """Return the files below a directory by their relative paths, or a single file by the path "".

    ``decrypted`` returns where the plain content of a file is. Raises ValueError for what is neither a file nor a
    directory, such as a symbolic link in a directory.
    """
    if not source.is_dir():
        return {"": _read(decrypted(source))}
    found = {}
    for path in sorted(source.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"'{path}' is neither a file nor a directory; put a copy of what it stands for there")
        if path.is_file():
            found[str(path.relative_to(source))] = _read(decrypted(path))
    return found


def _read(path: Path) -> LocalFile:
    return LocalFile(sha256_of(path), path.stat().st_size, path)
