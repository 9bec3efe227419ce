# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""FAT32 disks made from files: what is in them, whether that is what is asked for, and building them anew."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import fat32
from .errors import MicrovmError
from .fat32 import File
from .files import sha256_of


@dataclass(frozen=True, slots=True)
class Content:
    """A file's content by its digest (SHA-256) and size in bytes; ``source`` is None where it is elsewhere still."""

    sha256: str
    size: int
    source: bytes | Path | None

    @classmethod
    def of(cls, content: bytes) -> Content:
        """Return this content."""
        return cls(hashlib.sha256(content).hexdigest(), len(content), content)

    @classmethod
    def of_file(cls, path: Path) -> Content:
        """Return the content of a file. Raises OSError."""
        status = path.stat()
        digest = _digest(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return cls(digest, status.st_size, path)


@lru_cache(maxsize=4096)
def _digest(path: Path, device: int, inode: int, size: int, mtime_ns: int) -> str:
    """Return a file's digest; the arguments after the path tell whether it is still the same file."""
    return sha256_of(path)


# What a disk holds, by path, such as "keystore/tls/key.pem".
Contents = Mapping[str, Content]


@dataclass(frozen=True, slots=True)
class Difference:
    """What building a disk anew would change, by path."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    def as_dict(self) -> dict[str, list[str]]:
        """Return what diff mode shows."""
        return {"added": list(self.added), "removed": list(self.removed), "changed": list(self.changed)}


def difference(before: Mapping[str, str], wanted: Contents) -> Difference:
    """Compare the digests that a disk was built from with what is wanted."""
    return Difference(
        added=tuple(sorted(wanted.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - wanted.keys())),
        changed=tuple(sorted(path for path in wanted.keys() & before.keys() if wanted[path].sha256 != before[path])),
    )


def built_from(disk: Path, record: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Return the digests by path that a disk was built from, or None where the disk is not the one of the record."""
    if record is None:
        return None
    try:
        status = disk.stat()
    except FileNotFoundError:
        return None
    if [status.st_size, status.st_mtime_ns] != [record.get("size"), record.get("mtime_ns")]:
        return None
    # Root's own; ch_vm lets the VM's user read it.
    if stat.S_IMODE(status.st_mode) & ~0o640:
        return None
    return dict(record["files"])


def layout(wanted: Contents, *, label: str, option: str) -> fat32.Layout:
    """Lay out a disk of these contents; raise MicrovmError, naming ``option``, for what FAT32 cannot hold."""
    tree: dict[str, Any] = {}
    for path, content in sorted(wanted.items()):
        *parents, name = path.split("/")
        directory = tree
        for parent in parents:
            directory = directory.setdefault(parent, {})
        # What is elsewhere still is laid out by its size alone.
        directory[name] = File(b"" if content.source is None else content.source, content.size)
    try:
        return fat32.build(tree, label=label)
    except MicrovmError as error:
        error.option = error.option or option
        raise


def write(disk: Path, plan: fat32.Layout, wanted: Contents) -> dict[str, Any]:
    """Write the disk, which replaces the old one whole, and return its record."""
    fat32.write(plan, disk)
    status = disk.stat()
    files = {path: content.sha256 for path, content in wanted.items()}
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "files": files}
