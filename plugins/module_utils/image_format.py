# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a disk image is, by its first bytes: read here before any tool opens it, since a format can name other files."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

from .errors import CommandFailed, MicrovmError
from .qemu_img import Format
from .runner import Runner

Compression = Literal["gzip", "bzip2", "xz", "zstd"]

# The first bytes by RFC 1952, the bzip2 and xz formats' own documents, and RFC 8878.
_COMPRESSED: tuple[tuple[bytes, Compression], ...] = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
_CONVERT = "make a qcow2 or raw image of it with qemu-img convert"
_UNPACK = "unpack it and give the disk that is in it"
# By offset; the formats of disks by the probes of QEMU, block/*.c.
_OTHERS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"KDMV", "a VMDK image", _CONVERT),
    (0, b"COWD", "a VMDK image", _CONVERT),
    (0, b"# Disk DescriptorFile", "the descriptor of a VMDK image", _CONVERT),
    (0, b"vhdxfile", "a VHDX image", _CONVERT),
    (0, b"conectix", "a VHD image", _CONVERT),
    (64, b"\x7f\x10\xda\xbe", "a VDI image", _CONVERT),
    (0, b"QED\0", "a QED image", _CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels image", _CONVERT),
    (0, b"WithouFreSpacExt", "a Parallels image", _CONVERT),
    (257, b"ustar", "a tar archive, such as an OVA", _UNPACK),
    (0, b"PK\x03\x04", "a ZIP archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "decompress it, or give one that is compressed with zstd or xz"),
)
_WEB_PAGES = (b"<!doctype html", b"<html")
_CHUNK = 1 << 20
_HEAD = 512
# QEMU, docs/interop/qcow2: the header of version 2, the features of version 3, and bit 2 of the incompatible ones.
_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_HEADER, _QCOW2_FEATURES = 72, slice(72, 80)
_EXTERNAL_DATA_FILE = 1 << 2


def compression(path: Path) -> Compression | None:
    """Return what a file is compressed with, or None. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((kind for magic, kind in _COMPRESSED if head.startswith(magic)), None)


def recognise(path: Path, *, name: str) -> Format:
    """Return a disk's format. Raises OSError, and MicrovmError, which calls the disk ``name``, for one that cannot be used.

    That is any other known format, which would make no disk as raw bytes, and a qcow2 image that reaches for other files.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if head.startswith(_QCOW2_MAGIC):
            _check_qcow2(file, head, name)
            return "qcow2"
    if not head:
        raise _refused(name, "is empty", "give a raw or qcow2 image")
    for offset, magic, what, right in _OTHERS:
        if head[offset:].startswith(magic):
            raise _refused(name, f"is {what}", right)
    if compression(path) is not None:
        raise _refused(name, "is compressed twice", "give one that is compressed once, or not at all")
    if head.lstrip().lower().startswith(_WEB_PAGES):
        raise _refused(name, "is a web page", "give the URL of the image itself")
    return "raw"


def _check_qcow2(file: BinaryIO, head: bytes, name: str) -> None:
    version = int.from_bytes(head[4:8], "big")
    if len(head) < _QCOW2_HEADER or version not in (2, 3):
        raise _refused(name, "is no whole qcow2 image of version 2 or 3", _CONVERT)
    backing_offset, backing_size = int.from_bytes(head[8:16], "big"), int.from_bytes(head[16:20], "big")
    if backing_offset:
        file.seek(min(backing_offset, os.fstat(file.fileno()).st_size))
        other = file.read(min(backing_size, 1023)).decode(errors="replace")
        raise _refused(
            name,
            f"names a backing file, '{other}', which could be any file of the host",
            "flatten it with qemu-img convert first",
        )
    if int.from_bytes(head[32:36], "big"):
        raise _refused(name, "is encrypted, and there is no key for it here", _CONVERT)
    if version == 3 and int.from_bytes(head[_QCOW2_FEATURES], "big") & _EXTERNAL_DATA_FILE:
        raise _refused(
            name,
            "names an external data file, which could be any file of the host",
            "flatten it with qemu-img convert first",
        )


def _refused(name: str, found: str, right: str) -> MicrovmError:
    return MicrovmError(f"'{name}' {found}; {right}", option="disk.src")


def decompress(runner: Runner, path: Path, kind: Compression, target: Path, *, name: str) -> None:
    """Write what is compressed in ``path`` to the file ``target``, sparse and in flat memory.

    Raises MicrovmError, which calls the disk ``name``, where it is damaged or does not fit.
    """
    opened: dict[str, Callable[[Path], BinaryIO]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}  # type: ignore[dict-item]
    try:
        if kind == "zstd":
            # Python knows zstd from 3.14 on.
            runner.run(["zstd", "--decompress", "--quiet", "--force", "--sparse", "-o", str(target), str(path)])
            return
        with opened[kind](path) as source, target.open("r+b") as file:
            while chunk := source.read(_CHUNK):
                if chunk.count(0) == len(chunk):
                    file.seek(len(chunk), os.SEEK_CUR)
                else:
                    file.write(chunk)
            file.truncate()
    except (EOFError, lzma.LZMAError, zlib.error, OSError, CommandFailed) as error:
        raise MicrovmError(f"'{name}' cannot be decompressed with {kind}: {error}", option="disk.src") from error
