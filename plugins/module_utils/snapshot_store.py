# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The snapshots of VMs on the host: ``snapshots/VM/NAME/`` in the state directory, each whole or not there.

A snapshot is written under a hidden name. Its manifest, with the size and digest of every file, comes last, and then
the directory gets its name.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import MicrovmError
from .files import fsync_directory, fsync_file, sha256_of, write_json

MANIFEST = "manifest.json"
# Where the VMM writes its config.json, state.json and memory-ranges.
MEMORY = "vm"
_FORMAT = 1
_UNFINISHED = ".new."
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62})")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that is whole; the manifest says of what."""

    name: str
    path: Path
    manifest: Mapping[str, Any]

    @property
    def has_memory(self) -> bool:
        """Whether the guest goes on from it where it was; otherwise it boots from its disks."""
        return self.manifest["vmm_version"] is not None

    def facts(self) -> dict[str, Any]:
        """Return what is told of it."""
        return {
            "name": self.name,
            "path": str(self.path),
            "created": self.manifest["created"],
            "memory": self.has_memory,
            "vmm_version": self.manifest["vmm_version"],
            "size": sum(entry["size"] for entry in self.manifest["files"].values()),
        }

    def verify(self, *, digests: bool) -> None:
        """Raise MicrovmError, naming the file, where one is missing or is not what was written."""
        for name, entry in self.manifest["files"].items():
            path = self.path / name
            size = path.stat().st_size if path.is_file() else None
            if size != entry["size"]:
                found = "is not there" if size is None else f"has {size} bytes"
                raise MicrovmError(
                    f"the snapshot '{self.name}' is damaged: '{path}' {found}, and {entry['size']} were written; "
                    "choose another one",
                    option="snapshot",
                )
            if digests and sha256_of(path) != entry["sha256"]:
                raise MicrovmError(
                    f"the snapshot '{self.name}' is damaged: '{path}' is not what was written, by its digest; "
                    "choose another one",
                    option="snapshot",
                )


def check_name(name: str) -> str:
    """Return a snapshot's name; raise MicrovmError where it is none."""
    if not _NAME.fullmatch(name):
        raise MicrovmError(
            f"{name!r} does not name a snapshot: use 1 to 63 of letters, digits, '.', '_' and '-', a letter or digit first",
            option="snapshot",
        )
    return name


def directory(state_dir: Path, vm: str) -> Path:
    """Return the directory of a VM's snapshots."""
    return state_dir / "snapshots" / vm


def listed(state_dir: Path, vm: str) -> list[Snapshot]:
    """Return a VM's snapshots, the oldest first. One without a manifest that can be read is left out."""
    found = []
    for path in directory(state_dir, vm).glob("[!.]*"):
        with suppress(OSError, ValueError, KeyError):
            manifest = json.loads((path / MANIFEST).read_bytes())
            if manifest["format"] == _FORMAT:
                found.append(Snapshot(path.name, path, manifest))
    return sorted(found, key=lambda snapshot: (snapshot.manifest["created"], snapshot.name))


def get(state_dir: Path, vm: str, name: str) -> Snapshot:
    """Return one snapshot. Raises MicrovmError where it is not there, with the names of those that are."""
    known = listed(state_dir, vm)
    for snapshot in known:
        if snapshot.name == check_name(name):
            return snapshot
    names = ", ".join(snapshot.name for snapshot in known) or "none"
    raise MicrovmError(f"the VM has no snapshot '{name}' that is whole; it has: {names}", option="snapshot", vm=vm)


def with_snapshots(state_dir: Path) -> list[str]:
    """Return the names of the VMs that have snapshots."""
    return sorted({path.parent.name for path in (state_dir / "snapshots").glob("*/[!.]*")})


def begin(state_dir: Path, vm: str, name: str) -> Path:
    """Make the hidden directory that is to become a snapshot."""
    parent = directory(state_dir, vm)
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = parent / f"{_UNFINISHED}{name}"
    path.mkdir(mode=0o700)
    return path


def unfinished(state_dir: Path, vm: str) -> list[Path]:
    """Return what runs that were killed have begun."""
    return sorted(directory(state_dir, vm).glob(f"{_UNFINISHED}*"))


def finish(path: Path, manifest: Mapping[str, Any]) -> Snapshot:
    """Put everything on disk, add the manifest and give the snapshot its name."""
    files = {}
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        fsync_file(file)
        files[str(file.relative_to(path))] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
    for below in [*(entry for entry in path.iterdir() if entry.is_dir()), path]:
        fsync_directory(below)
    whole = {**manifest, "format": _FORMAT, "files": files}
    write_json(path / MANIFEST, whole)
    name = path.name.removeprefix(_UNFINISHED)
    target = path.parent / name
    path.rename(target)
    fsync_directory(target.parent)
    return Snapshot(name, target, whole)


def remove(path: Path) -> None:
    """Remove a snapshot: first its name, so that what is left where this is killed is no snapshot any more."""
    hidden = path.parent / f"{_UNFINISHED}{path.name.removeprefix(_UNFINISHED)}"
    if path != hidden:
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
    shutil.rmtree(hidden)
    for parent in (path.parent, path.parent.parent):
        with suppress(OSError):  # there are others
            parent.rmdir()
