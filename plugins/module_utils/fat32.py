# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""FAT32 images: a tree of files is laid out first, which is pure, and then written in one pass.

Facts from Microsoft's FAT32 File System Specification, version 1.03 ("fatgen103"). An image is the same, byte for
byte, for the same tree. What is not written in it is a hole.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
import zlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Union

from .errors import MicrovmError
from .fat_names import ENTRY_SIZE, check_names, entry_count, is_short, long_entries, short_names
from .files import replacing

SECTOR = 512
MIB = 1 << 20
# With fewer clusters the file system would be FAT16, whatever it says of itself ("FAT Type Determination"); 16 are
# added as the specification advises, since readers are known to be off by as many.
MIN_CLUSTERS = 65_525 + 16
MAX_CLUSTERS = 0x0FFFFFF5
MAX_FILE_SIZE = (1 << 32) - 1
MAX_DIRECTORY_SIZE = 65_536 * ENTRY_SIZE
MAX_SECTORS = (1 << 32) - 1
# The specification's table of cluster sizes: up to so many bytes of content, clusters of so many bytes.
_CLUSTER_SIZES = ((250 * MIB, 512), (8 << 30, 4096), (16 << 30, 8192), (32 << 30, 16384), (1 << 62, 32768))
_FATS = 2
_MIN_RESERVED = 32
_BACKUP_SECTOR = 6
_ROOT_CLUSTER = 2
_END_OF_CHAIN = 0x0FFFFFFF
_ATTRIBUTE_LABEL, _ATTRIBUTE_DIRECTORY, _ATTRIBUTE_ARCHIVE = 0x08, 0x10, 0x20
_LABEL_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 $%'-_@~`!(){}^#&")
# 1980-01-01, the first day that FAT knows, so that an image does not depend on when it was made.
EPOCH = 315_532_800
_LAST_SECOND = 4_354_819_199  # 2107-12-31


@dataclass(frozen=True, slots=True)
class File:
    """A file's content: bytes, or a path to read them from, and their number."""

    source: bytes | Path
    size: int

    @classmethod
    def of(cls, content: bytes) -> File:
        """Return a file with this content."""
        return cls(content, len(content))


# A directory: its entries by name.
Tree = Mapping[str, Union["File", "Tree"]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything goes: offsets and sizes in bytes, clusters by number."""

    size: int
    cluster_size: int
    reserved_sectors: int
    fat_sectors: int
    boot_sector: bytes
    info_sector: bytes
    # The runs of clusters, in order and without gaps from the root's cluster on.
    runs: tuple[int, ...]
    directories: tuple[tuple[int, bytes], ...]
    files: tuple[tuple[int, str, File], ...]

    def offset(self, cluster: int) -> int:
        """Return where a cluster begins."""
        data = (self.reserved_sectors + _FATS * self.fat_sectors) * SECTOR
        return data + (cluster - _ROOT_CLUSTER) * self.cluster_size


def read_tree(path: Path) -> dict[str, File | Tree]:
    """Return the tree of a directory on disk, of any depth, in the order of its names.

    Raises MicrovmError for what is neither a file nor a directory, such as a symbolic link.
    """
    tree: dict[str, File | Tree] = {}
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                tree[entry.name] = read_tree(Path(entry.path))
            elif stat.S_ISREG(status.st_mode):
                tree[entry.name] = File(Path(entry.path), status.st_size)
            else:
                raise MicrovmError(f"'{entry.path}' is neither a file nor a directory, and FAT32 holds nothing else")
    return tree


@dataclass(slots=True)
class _Directory:
    path: str
    tree: Tree
    aliases: dict[str, bytes]
    parent: _Directory | None
    size: int
    cluster: int = 0


def _directories(tree: Tree) -> list[_Directory]:
    """Return all directories, checked, each before those in it."""
    found: list[_Directory] = []
    todo: list[tuple[str, Tree, _Directory | None]] = [("", tree, None)]
    while todo:
        path, entries, parent = todo.pop()
        check_names(entries, directory=path)
        aliases = short_names(entries)
        # The root has its label there, any other directory itself and its parent.
        count = (1 if parent is None else 2) + sum(entry_count(name, alias) for name, alias in aliases.items())
        directory = _Directory(path, entries, aliases, parent, count * ENTRY_SIZE)
        if directory.size > MAX_DIRECTORY_SIZE:
            raise MicrovmError(
                f"the directory {path or '/'!r} has {len(entries)} names, which take {count} entries of a FAT32 "
                f"directory, and {MAX_DIRECTORY_SIZE // ENTRY_SIZE} is the most; spread them over more directories"
            )
        found.append(directory)
        for name, entry in entries.items():
            below = f"{path}/{name}" if path else name
            if not isinstance(entry, File):
                todo.append((below, entry, directory))
            elif entry.size > MAX_FILE_SIZE:
                raise MicrovmError(
                    f"the file {below!r} has {entry.size} bytes, and FAT32 holds at most {MAX_FILE_SIZE} in one file"
                )
    return found


def _files(directories: list[_Directory]) -> Iterator[tuple[_Directory, str, File]]:
    for directory in directories:
        for name, entry in directory.tree.items():
            if isinstance(entry, File):
                yield directory, name, entry


def _check_label(label: str) -> bytes:
    if not 1 <= len(label) <= 11 or not _LABEL_CHARACTERS.issuperset(label) or label.strip() != label:
        raise MicrovmError(f"{label!r} is not a FAT label: use 1 to 11 upper-case letters, digits, '-' or '_'")
    return f"{label:<11}".encode("ascii")


def _dos_time(timestamp: int) -> tuple[int, int]:
    """Return the date and the time of Unix ``timestamp`` as FAT has them, in UTC, to two seconds."""
    if not EPOCH <= timestamp <= _LAST_SECOND:
        raise MicrovmError(f"the time {timestamp} cannot be told in FAT32, which knows the years 1980 to 2107")
    moment = time.gmtime(timestamp)
    date = (moment.tm_year - 1980) << 9 | moment.tm_mon << 5 | moment.tm_mday
    return date, moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2


def _entry(alias: bytes, attributes: int, when: tuple[int, int], cluster: int, size: int) -> bytes:
    date, daytime = when
    fields = (alias, attributes, 0, 0, daytime, date, date, cluster >> 16, daytime, date, cluster & 0xFFFF, size)
    return struct.pack("<11sBBBHHHHHHHI", *fields)


def build(tree: Tree, *, label: str, timestamp: int = EPOCH, free_bytes: int = 0) -> Layout:
    """Lay out an image that holds ``tree``, at least ``free_bytes`` bytes free, and ``label``.

    ``timestamp``, in Unix seconds, is the time of everything in it. The image's size is a multiple of 1 MiB. Raises
    MicrovmError for what FAT32 cannot hold: a name, a file of 4 GiB, a directory of over 65,536 entries.
    """
    name = _check_label(label)
    when = _dos_time(timestamp)
    directories = _directories(tree)
    files = list(_files(directories))

    content = sum(directory.size for directory in directories) + sum(row[2].size for row in files) + free_bytes
    cluster_size = next(size for limit, size in _CLUSTER_SIZES if content <= limit)

    runs: list[int] = []
    cluster = _ROOT_CLUSTER
    for directory in directories:
        directory.cluster = cluster
        runs.append(-(-directory.size // cluster_size))
        cluster += runs[-1]
    first: dict[tuple[int, str], int] = {}
    placed: list[tuple[int, str, File]] = []
    for directory, file_name, file in files:
        if file.size:
            first[id(directory), file_name] = cluster
            placed.append((cluster, f"{directory.path}/{file_name}", file))
            runs.append(-(-file.size // cluster_size))
            cluster += runs[-1]
    used = cluster - _ROOT_CLUSTER

    size, reserved, fat_sectors, clusters = _dimensions(used + -(-free_bytes // cluster_size), cluster_size)
    contents = _contents(directories, first, name, when)
    volume_id = zlib.crc32(repr((label, size, [(row[1], row[2].size) for row in placed])).encode(errors="replace"))
    return Layout(
        size=size,
        cluster_size=cluster_size,
        reserved_sectors=reserved,
        fat_sectors=fat_sectors,
        boot_sector=_boot_sector(size // SECTOR, cluster_size // SECTOR, reserved, fat_sectors, volume_id, name),
        info_sector=_info_sector(clusters - used, cluster),
        runs=tuple(runs),
        directories=contents,
        files=tuple(placed),
    )


def _dimensions(wanted: int, cluster_size: int) -> tuple[int, int, int, int]:
    """Return the image's size in bytes, its reserved sectors, the sectors of a FAT, and its number of clusters."""
    wanted = max(wanted, MIN_CLUSTERS)
    # The image grows to a whole MiB, and each FAT has room for the clusters that this adds.
    fat_sectors = -(-(wanted + MIB // cluster_size + 2) * 4 // SECTOR)
    # The data begins at a page of the host's, which lets file systems that can share it with the source.
    reserved = _MIN_RESERVED + -(_MIN_RESERVED + _FATS * fat_sectors) % 8
    data = (reserved + _FATS * fat_sectors) * SECTOR
    size = -(-(data + wanted * cluster_size) // MIB) * MIB
    clusters = (size - data) // cluster_size
    if clusters > MAX_CLUSTERS or size // SECTOR > MAX_SECTORS:
        raise MicrovmError(f"the content needs an image of {size} bytes, which is more than FAT32 can have")
    return size, reserved, fat_sectors, clusters


def _contents(
    directories: list[_Directory], first: Mapping[tuple[int, str], int], label: bytes, when: tuple[int, int]
) -> tuple[tuple[int, bytes], ...]:
    """Return each directory's first cluster and its entries."""
    clusters = {(id(below.parent), below.path.rpartition("/")[2]): below.cluster for below in directories}
    contents = []
    for directory in directories:
        if directory.parent is None:
            entries = [_entry(label, _ATTRIBUTE_LABEL, when, 0, 0)]
        else:
            # The parent's cluster is 0 where it is the root, whatever the root's is.
            above = 0 if directory.parent.parent is None else directory.parent.cluster
            entries = [
                _entry(b".          ", _ATTRIBUTE_DIRECTORY, when, directory.cluster, 0),
                _entry(b"..         ", _ATTRIBUTE_DIRECTORY, when, above, 0),
            ]
        for name, entry in directory.tree.items():
            alias = directory.aliases[name]
            if not is_short(name, alias):
                entries.append(long_entries(name, alias))
            if isinstance(entry, File):
                entries.append(_entry(alias, _ATTRIBUTE_ARCHIVE, when, first.get((id(directory), name), 0), entry.size))
            else:
                entries.append(_entry(alias, _ATTRIBUTE_DIRECTORY, when, clusters[id(directory), name], 0))
        contents.append((directory.cluster, b"".join(entries)))
    return tuple(contents)


def _boot_sector(
    sectors: int, per_cluster: int, reserved: int, fat_sectors: int, volume_id: int, label: bytes
) -> bytes:
    return struct.pack(
        "<3s8sHBHBHHBHHHIIIHHIHH12xBBBI11s8s420x2s",
        b"\xeb\x58\x90",
        b"MSWIN4.1",
        SECTOR,
        per_cluster,
        reserved,
        _FATS,
        0,  # entries of the root directory: only FAT12 and FAT16 have them
        0,  # sectors: too many for 16 bits
        0xF8,  # media: fixed
        0,  # sectors of a FAT: see below
        63,  # sectors of a track, and heads, for BIOSes
        255,
        0,  # hidden sectors
        sectors,
        fat_sectors,
        0,  # both FATs are alike
        0,  # version
        _ROOT_CLUSTER,
        1,  # the sector with the free count
        _BACKUP_SECTOR,
        0x80,  # drive
        0,
        0x29,  # the three fields that follow are there
        volume_id,
        label,
        b"FAT32   ",
        b"\x55\xaa",
    )


def _info_sector(free: int, next_free: int) -> bytes:
    return struct.pack("<4s480x4sII12x4s", b"RRaA", b"rrAa", free, next_free, b"\0\0\x55\xaa")


def _fat(runs: tuple[int, ...]) -> bytes:
    """Return the used part of the FAT: two entries of its own, and a chain for each run of clusters."""
    entries = array("I", (0x0FFFFFF8, _END_OF_CHAIN))
    for length in runs:
        cluster = len(entries)
        entries.extend(range(cluster + 1, cluster + length))
        entries.append(_END_OF_CHAIN)
    if struct.pack("=I", 1) != struct.pack("<I", 1):
        entries.byteswap()
    return entries.tobytes()


def write(layout: Layout, path: Path, *, mode: int = 0o600) -> None:
    """Write the image, which takes the name ``path`` only when it is whole and on disk.

    Raises MicrovmError where a source's size is no longer the one that was laid out; OSError as the file system does.
    """
    with replacing(path, mode=mode) as image:
        for sector in (0, _BACKUP_SECTOR):
            image.seek(sector * SECTOR)
            image.write(layout.boot_sector + layout.info_sector)
        fat = _fat(layout.runs)
        for number in range(_FATS):
            image.seek((layout.reserved_sectors + number * layout.fat_sectors) * SECTOR)
            image.write(fat)
        for cluster, content in layout.directories:
            image.seek(layout.offset(cluster))
            image.write(content)
        for cluster, name, file in layout.files:
            image.seek(layout.offset(cluster))
            if isinstance(file.source, bytes):
                image.write(file.source)
            else:
                image.flush()
                _copy(file.source, image, layout.offset(cluster), file.size, name)
        image.truncate(layout.size)


def _copy(source: Path, image: BinaryIO, offset: int, size: int, name: str) -> None:
    """Have the kernel copy ``size`` bytes of ``source`` to ``offset``: shared where the file system can, else flat."""
    with source.open("rb", buffering=0) as file:
        copied = 0
        while copied < size:
            count = _copy_range(file.fileno(), image.fileno(), copied, offset + copied, size - copied)
            if count == 0:
                break
            copied += count
        if copied != size or os.fstat(file.fileno()).st_size != size:
            raise MicrovmError(
                f"the file {name.lstrip('/')!r} has changed while it was copied: it had {size} bytes and now has "
                f"{os.fstat(file.fileno()).st_size}; run again when '{source}' is at rest"
            )


def _copy_range(source: int, target: int, source_offset: int, target_offset: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, source_offset, target_offset)
    except OSError as error:
        # copy_file_range(2), ERRORS: file systems, or pairs of them, that it does not work between.
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return os.pwrite(target, os.pread(source, min(count, 4 * MIB), source_offset), target_offset)
