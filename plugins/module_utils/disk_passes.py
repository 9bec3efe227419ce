# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files to another host in passes: the first while they are written to, the last when no one does.

A pass sends the blocks that are not there as they are here. What is there is known from what was sent, a digest for each
block, so that a pass reads one side only and waits for no answer but its last. The other side begins with files of nothing
but zeros: holes are not sent.

What is sent is a row of frames, each a HEADER and the block that it announces. The receiver names no file that a frame
could lead elsewhere: a frame has the place of one in a list that both sides have.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

from .errors import MicrovmError

# The kind; the file's place in the list; an offset, or the file's size; the length of what follows.
HEADER = struct.Struct(">cHQI")
# The file's size, and the same for one that has its space set aside; a block; the end of a pass; the end of all passes.
SIZE, RESERVED, BLOCK, PASS, END = b"S", b"R", b"B", b"P", b"E"
END_OF_PASSES = HEADER.pack(END, 0, 0, 0)
# What the receiver says once a pass is on its disk.
TAKEN = b"k"
BLOCK_BYTES = 256 << 10
_DIGEST_BYTES = 16
# How many blocks are read and digested at once: what of them differs is held in memory until it is sent.
_WINDOW = 64
_PAGE_BYTES = 4096
_NO_PAGE = bytes(_PAGE_BYTES)
_WORKERS = min(4, os.cpu_count() or 1)

Send = Callable[[bytes], None]
Read = Callable[[int], bytes]


def _digest(block: bytes) -> bytes:
    """Return a block's digest; the last block of a file counts as filled up with zeros."""
    return sha256(block if len(block) == BLOCK_BYTES else block.ljust(BLOCK_BYTES, b"\0")).digest()[:_DIGEST_BYTES]


_ZEROS = _digest(b"")


@dataclass
class Source:
    """A file here, and what is known of it there. ``direct``: its writer leaves the page cache out."""

    path: Path
    direct: bool = False
    size: int = 0
    known: bytearray = field(default_factory=bytearray)


def send_pass(sources: Sequence[Source], send: Send) -> int:
    """Send what differs; return how many bytes of the files that was. Raises OSError."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        sent = sum(_send_file(place, source, send, pool) for place, source in enumerate(sources))
    send(HEADER.pack(PASS, 0, 0, 0))
    return sent


def _send_file(place: int, source: Source, send: Send, pool: ThreadPoolExecutor) -> int:
    descriptor = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if source.direct:
            # A page that a pass reads as its writer writes past the cache may stay there as it was (open(2), O_DIRECT).
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        status = os.fstat(descriptor)
        _resize(source, status.st_size)
        reserved = status.st_blocks * 512 >= status.st_size
        send(HEADER.pack(RESERVED if reserved else SIZE, place, status.st_size, 0))
        sent = 0
        for window in _windows(descriptor, source):
            blocks = pool.map(partial(_read, descriptor, source.size), window)
            for number, (digest, block) in zip(window, blocks, strict=True):
                at = number * _DIGEST_BYTES
                if source.known[at : at + _DIGEST_BYTES] != digest:
                    send(HEADER.pack(BLOCK, place, number * BLOCK_BYTES, len(block)) + block)
                    source.known[at : at + _DIGEST_BYTES] = digest
                    sent += len(block)
        return sent
    finally:
        os.close(descriptor)


def _resize(source: Source, size: int) -> None:
    """Know of as many blocks as there are; new ones are zeros there, as the rest of the last one is."""
    count = -(-size // BLOCK_BYTES)
    del source.known[count * _DIGEST_BYTES :]
    source.known += _ZEROS * (count - len(source.known) // _DIGEST_BYTES)
    source.size = size


def _windows(descriptor: int, source: Source) -> Iterator[Sequence[int]]:
    """Yield the numbers of the blocks that are to be read: where there is data, and in holes what is no zeros there."""
    number, count = 0, -(-source.size // BLOCK_BYTES)
    while number < count:
        data, end = _extent(descriptor, number * BLOCK_BYTES, source.size)
        first, behind = data // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        hole = source.known[number * _DIGEST_BYTES : first * _DIGEST_BYTES]
        if hole != _ZEROS * (first - number):
            first = number
        for start in range(first, behind, _WINDOW):
            yield range(start, min(start + _WINDOW, behind))
        number = behind


def _extent(descriptor: int, offset: int, size: int) -> tuple[int, int]:
    """Return where the next data in a file begins and ends; twice its ``size`` where there is none (lseek(2))."""
    try:
        data = os.lseek(descriptor, offset, os.SEEK_DATA)
        return min(data, size), min(os.lseek(descriptor, data, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size, size


def _read(descriptor: int, size: int, number: int) -> tuple[bytes, bytes]:
    """Return a block and its digest; what was appended since ``size`` was told is for the next pass."""
    offset = number * BLOCK_BYTES
    length = min(BLOCK_BYTES, size - offset)
    # It is shorter where the file was cut since then; what was sent of the rest is not to stay.
    block = os.pread(descriptor, length, offset).ljust(length, b"\0")
    return _digest(block), block


def take_passes(read: Read, send: Send, targets: Sequence[int]) -> None:
    """Write what comes to the files that ``targets`` are open, until all passes are over.

    ``read`` returns as many bytes as are asked for, or fewer where no more come. Raises MicrovmError for what is no pass of
    these files, or is cut short, and OSError.
    """
    while True:
        header = read(HEADER.size)
        if len(header) < HEADER.size:
            raise MicrovmError("the disks were cut short")
        kind, place, number, length = HEADER.unpack(header)
        if kind == END:
            return
        if kind == PASS:
            for target in targets:
                os.fsync(target)
            send(TAKEN)
            continue
        if kind not in (SIZE, RESERVED, BLOCK) or place >= len(targets) or length > BLOCK_BYTES:
            raise MicrovmError(f"what came is no part of the {len(targets)} disks that are awaited")
        if kind == BLOCK:
            block = read(length)
            if len(block) < length or number + length > os.fstat(targets[place]).st_size:
                raise MicrovmError("the disks were cut short, or what came goes beyond their ends")
            _write(targets[place], block, number)
            continue
        os.ftruncate(targets[place], number)
        if kind == RESERVED and number:
            os.posix_fallocate(targets[place], 0, number)


def _write(target: int, block: bytes, offset: int) -> None:
    """Write a block; pages of zeros stay holes where all of it is one yet."""
    hole = _NO_PAGE in block and _extent(target, offset, sys.maxsize)[0] >= offset + len(block)
    view, begun = memoryview(block), 0
    for at in range(0, len(block), _PAGE_BYTES) if hole else ():
        page = view[at : at + _PAGE_BYTES]
        if page == _NO_PAGE[: len(page)]:
            _write_all(target, view[begun:at], offset + begun)
            begun = at + len(page)
    _write_all(target, view[begun:], offset + begun)


def _write_all(target: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(target, view, offset)
        view, offset = view[written:], offset + written
