# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu-img, the one tool here that reads and writes disk formats."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from .runner import Runner

Format = Literal["raw", "qcow2"]


def convert_to_raw(runner: Runner, source: Path, source_format: Format, target: Path) -> None:
    """Write ``source`` to ``target`` as a sparse raw image. Raises CommandFailed."""
    runner.run(["qemu-img", "convert", "-f", source_format, "-O", "raw", str(source), str(target)])


def create(runner: Runner, path: Path, format: Format, size: int) -> None:
    """Make an empty image of ``size`` bytes. Raises CommandFailed."""
    runner.run(["qemu-img", "create", "-q", "-f", format, str(path), str(size)])


def create_overlay(runner: Runner, path: Path, backing: Path) -> None:
    """Make a qcow2 image that holds what differs from the raw image ``backing``. Raises CommandFailed."""
    runner.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(backing), "-F", "raw", str(path)])


def resize(runner: Runner, path: Path, format: Format, size: int) -> None:
    """Grow an image that no one else has open to ``size`` bytes. Raises CommandFailed."""
    runner.run(["qemu-img", "resize", "-q", "-f", format, str(path), str(size)])


def size_of(path: Path, format: Format) -> int:
    """Return the size in bytes that a guest sees, without running qemu-img.

    For qcow2 it stands in the header, bytes 24 to 31 (QEMU, docs/interop/qcow2.txt). Raises OSError, and ValueError
    for a file that is no qcow2 image.
    """
    if format == "raw":
        return path.stat().st_size
    with path.open("rb") as file:
        header = file.read(32)
    if header[:4] != b"QFI\xfb" or len(header) < 32:
        raise ValueError(f"'{path}' is not a qcow2 image")
    return int.from_bytes(header[24:32], "big")


def size_of_attached(disk: Mapping[str, Any]) -> int:
    """Return the size in bytes that a guest sees of a disk of a VmConfig, which has a path. Raises OSError and ValueError."""
    return size_of(Path(disk["path"]), "qcow2" if disk.get("image_type") == "Qcow2" else "raw")


def is_qcow2(path: Path) -> bool:
    """Return whether the content is a qcow2 image's. Raises OSError."""
    with path.open("rb") as file:
        return file.read(4) == b"QFI\xfb"


def backing_file(path: Path) -> Path | None:
    """Return the file that a qcow2 image is based on, without running qemu-img; None for an image with no such file.

    Its name stands at the offset in bytes 8 to 15 of the header, its length in bytes 16 to 19 (QEMU, docs/interop/qcow2.txt).
    """
    with path.open("rb") as file:
        header = file.read(20)
        if header[:4] != b"QFI\xfb" or len(header) < 20:
            return None
        offset, length = int.from_bytes(header[8:16], "big"), int.from_bytes(header[16:20], "big")
        if not offset or not 0 < length <= 1023:
            return None
        file.seek(offset)
        return path.parent / os.fsdecode(file.read(length))
