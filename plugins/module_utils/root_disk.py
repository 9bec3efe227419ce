# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM's root disk: what its image is made into, how large it is, and what boots it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import disk_file, qemu_img
from .errors import MicrovmError
from .files import nearest
from .runner import Runner
from .sizes import parse_size

RootMode = Literal["reflink", "overlay", "copy"]
# linux/fs.h: _IOW(0x94, 9, int)
_FICLONE = 0x40049409


@dataclass(frozen=True, slots=True)
class RootDisk:
    """A root disk that is to be: ``before`` and ``size`` in bytes; ``boot``, the files that boot it, by their kinds."""

    path: Path
    mode: RootMode
    base: Path
    before: int | None
    size: int
    outdated: bool
    boot: Mapping[str, str] | None
    action: str | None


def plan(item: Mapping[str, Any], directory: Path, record: Mapping[str, Any], *, check_mode: bool) -> RootDisk:
    """Return the root disk that the options ask for. Raises MicrovmError for one that cannot be, or would lose data."""
    if item.get("image") is None:
        raise MicrovmError("is missing; name the raw image that the root disk begins as", option="image")
    base = Path(item["image"])
    options = item.get("root") or {}
    wanted_mode: RootMode | Literal["auto"] = options.get("mode") or "auto"
    wanted_size = None if options.get("size") is None else parse_size(options["size"], option="root.size")
    if wanted_size is not None and wanted_size % 512:
        raise MicrovmError(f"{wanted_size} bytes are asked for; a disk is a multiple of 512 bytes", option="root.size")
    asked_boot = None if item.get("boot") is None else {key: path for key, path in item["boot"].items() if path}
    raw, overlay = directory / "root.raw", directory / "root.qcow2"
    there = raw if raw.exists() else overlay if overlay.exists() else None
    if there is None:
        mode: RootMode = wanted_mode if wanted_mode != "auto" else _best_mode(base, directory)
        # In check mode the image may be one that a run would have fetched.
        size = 0 if check_mode and not base.exists() else _base_size(base)
        if wanted_size is not None and wanted_size < size:
            raise MicrovmError(
                f"{wanted_size} bytes are asked for, and the image '{base}' has {size}", option="root.size"
            )
        path = overlay if mode == "overlay" else raw
        return RootDisk(path, mode, base, None, wanted_size or size, False, asked_boot, f"made {path.name} ({mode})")
    made = record.get("root") or {}
    mode = "overlay" if there is overlay else made.get("mode", "copy")
    size = disk_file.size_of(there)
    if wanted_size is not None and wanted_size < size:
        raise MicrovmError(
            f"{wanted_size} bytes are asked for, and '{there}' has {size}: a disk is never shrunk, since what lies at its "
            "end would be lost",
            option="root.size",
        )
    target = max(size, wanted_size or 0)
    grow = f"grew {there.name}" if target > size else None
    outdated = made.get("image") not in (None, str(base))
    # The kernel of another image than the disk's would not find its modules there.
    boot = made.get("boot") if asked_boot is None or outdated else asked_boot
    return RootDisk(there, mode, Path(made.get("image", base)), size, target, outdated, boot, grow)


def _base_size(base: Path) -> int:
    if not base.exists():
        raise MicrovmError(f"'{base}' is not there; give the path of a raw image on the host", option="image")
    if not base.is_file():
        raise MicrovmError(f"'{base}' is not a file; give the path of a raw image on the host", option="image")
    if qemu_img.is_qcow2(base):
        raise MicrovmError(f"'{base}' is a qcow2 image; give a raw one, such as ch_image makes of it", option="image")
    return base.stat().st_size


def _best_mode(base: Path, directory: Path) -> RootMode:
    """Return whether the two places can share blocks, which is tried with files that have no names."""
    place = nearest(directory)
    if place.stat().st_dev != nearest(base.parent).stat().st_dev:
        return "overlay"
    try:
        with (
            os.fdopen(os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600), "r+b", buffering=0) as one,
            os.fdopen(os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600), "r+b", buffering=0) as other,
        ):
            one.write(bytes(4096))
            fcntl.ioctl(other.fileno(), _FICLONE, one.fileno())
    except OSError:
        return "overlay"
    return "reflink"


def apply(root: RootDisk, runner: Runner, record: dict[str, Any]) -> None:
    """Make or grow it, and note on the VM's record what it was made of."""
    if root.before is not None:
        disk_file.refuse_in_use(root.path, option="root.size")
        qemu_img.resize(runner, root.path, disk_file.format_of(root.path), root.size)
        note_boot(root, record)
        return
    with disk_file.new(root.path) as temporary:
        if root.mode == "overlay":
            qemu_img.create_overlay(runner, temporary, root.base)
        elif root.mode == "copy":
            qemu_img.convert_to_raw(runner, root.base, "raw", temporary)
        else:
            _reflink(root.base, temporary)
        if root.size > qemu_img.size_of(temporary, disk_file.format_of(root.path)):
            qemu_img.resize(runner, temporary, disk_file.format_of(root.path), root.size)
    record["root"] = {"mode": root.mode, "image": str(root.base)}
    note_boot(root, record)


def note_boot(root: RootDisk, record: dict[str, Any]) -> None:
    """Note on the VM's record what boots the disk."""
    if root.boot is not None:
        record.setdefault("root", {})["boot"] = dict(root.boot)


def _reflink(source: Path, target: Path) -> None:
    with source.open("rb") as base, target.open("r+b") as clone:
        try:
            fcntl.ioctl(clone.fileno(), _FICLONE, base.fileno())
        except OSError as error:
            raise MicrovmError(
                f"'{source}' and '{target.parent}' cannot share blocks ({error.strerror}): that takes one file system of "
                "a kind that can, such as XFS or Btrfs; use mode auto, overlay or copy",
                option="root.mode",
            ) from error
