# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disk images: their type, their lock, and the block devices that QEMU makes of them (block/, vmm/src/device_manager.rs)."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Any

from .errors import Refused, not_emulated, os_error

F_OFD_SETLK = 37  # linux/fcntl.h
QCOW2_MAGIC = b"QFI\xfb"
NAMES = {"Raw": "raw", "Qcow2": "qcow2", "FixedVhd": "vhd", "Vhdx": "vhdx"}
DRIVERS = {"Raw": "raw", "Qcow2": "qcow2", "FixedVhd": "vpc", "Vhdx": "vhdx"}


def _failed(*causes: str) -> Refused:
    return Refused("Error from device manager", *causes)


def _detect(fd: int, size: int) -> str:
    head = os.pread(fd, 8, 0)
    if head[:4] == QCOW2_MAGIC:
        return "Qcow2"
    if head == b"vhdxfile":
        return "Vhdx"
    if size >= 512 and os.pread(fd, 8, size - 512) == b"conectix":
        return "FixedVhd"
    return "Raw"


class Disk:
    """An image that is open and locked for one VM."""

    def __init__(self, config: dict[str, Any], *, lock: bool = True) -> None:
        """Open and, with ``lock``, lock; fill in the ``image_type`` that was detected."""
        if "path" not in config:
            raise _failed("No disk path was specified when one was expected")
        if "rate_limiter_config" in config or "rate_limit_group" in config:
            raise not_emulated(f"a rate limiter, as of the disk {config['path']}")
        path = config["path"]
        try:
            # A directory opens for reading, but not for writing.
            self.fd = os.open(path, (os.O_RDONLY if config["readonly"] else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            raise _failed("Cannot open disk path", f"I/O error (path={path} op=open)", os_error(error)) from error
        try:
            self._open(config)
            self.config = config
            if lock:
                self.lock(True)
        except BaseException:
            os.close(self.fd)
            raise

    def _open(self, config: dict[str, Any]) -> None:
        path, wanted = config["path"], config["image_type"]
        detected = _detect(self.fd, os.fstat(self.fd).st_size)
        if wanted not in ("Unknown", detected):
            raise _failed(
                "Disk image type does not match expected type: "
                f"specified = {NAMES[wanted]}, detected = {NAMES[detected]}"
            )
        self.is_based = detected == "Qcow2" and _backing_file(self.fd) is not None
        if self.is_based and not config["backing_files"]:
            raise _failed(
                "Cannot open disk path",
                f"Unsupported feature (path={path} op=open)",
                "Maximum disk nesting depth exceeded",
            )
        self.image_type = detected
        self.guards_sector_0 = wanted == "Unknown" and detected == "Raw"
        config["image_type"] = detected

    def lock(self, held: bool) -> None:
        """Take the image's lock, or give it back."""
        kind, name = (fcntl.F_RDLCK, "Read") if self.config["readonly"] else (fcntl.F_WRLCK, "Write")
        kind = kind if held else fcntl.F_UNLCK
        try:
            fcntl.fcntl(self.fd, F_OFD_SETLK, struct.pack("=hhxxxxqqixxxx", kind, os.SEEK_SET, 0, 0, 0))
        except OSError as error:
            raise _failed(
                "Cannot lock images of all block devices",
                f"Failed to get {name} lock for disk image: {self.config['path']}",
                "The file is already locked",
            ) from error

    def close(self) -> None:
        """Give the lock back."""
        os.close(self.fd)

    def nodes(self, node: str) -> list[dict[str, Any]]:
        """Return the block nodes for QEMU, the last of them the one named ``node``."""
        readonly = self.config["readonly"]
        common = {"read-only": readonly, "discard": "unmap", "cache": {"no-flush": True}}
        file = {"driver": "file", "node-name": f"{node}-file", "filename": self.config["path"], "locking": "off"}
        if os.path.exists(self.config["path"]) and not os.path.isfile(self.config["path"]):
            file["driver"] = "host_device"
        image: dict[str, Any] = {"driver": DRIVERS[self.image_type], "node-name": node, "file": f"{node}-file"}
        nodes = [file | common]
        if self.guards_sector_0:
            guard = {"event": "none", "iotype": "write", "sector": 0, "errno": 5, "once": False}
            nodes.append(
                {"driver": "blkdebug", "node-name": f"{node}-guard", "image": f"{node}-file", "inject-error": [guard]}
            )
            image["file"] = f"{node}-guard"
        if self.image_type == "Qcow2":
            image["backing"] = _chain(self.config["path"])
        nodes.append(image | common)
        return nodes


def _backing_file(fd: int) -> str | None:
    """Return the name of the backing file in a qcow2 image's header: its offset at byte 8, its length at 16."""
    offset, length = struct.unpack(">QI", os.pread(fd, 12, 8))
    return os.fsdecode(os.pread(fd, length, offset)) if offset else None


def _chain(path: str) -> dict[str, Any] | None:
    """Return QEMU's block nodes for what lies below a qcow2 image, none of them locked: the real VMM locks the top."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        name = _backing_file(fd) if _detect(fd, os.fstat(fd).st_size) == "Qcow2" else None
    finally:
        os.close(fd)
    if name is None:
        return None
    below = os.path.join(os.path.dirname(path), name)
    fd = os.open(below, os.O_RDONLY | os.O_CLOEXEC)
    try:
        kind = _detect(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
    file = {"driver": "file", "filename": below, "locking": "off"}
    node: dict[str, Any] = {"driver": DRIVERS[kind], "file": file, "read-only": True}
    return node | ({"backing": _chain(below)} if kind == "Qcow2" else {})
