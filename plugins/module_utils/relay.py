# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copying between two sides, byte for byte and both ways."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Literal

Ended = Literal["line", "source", "left"]
# Takes what comes from the source; returns what of it goes on, and whether the relay ends with it.
Filter = Callable[[bytes], tuple[bytes, bool]]
_BLOCK = 65536


def relay(line: int, source: int, sink: int, *, keep: Filter | None = None) -> Ended:
    """Copy from ``source`` to ``line`` and from ``line`` to ``sink``; return what ended it.

    A side that does not take its bytes holds up its own direction alone. What has come from the line is written to the sink
    before this returns. ``line`` is set to non-blocking.
    """
    os.set_blocking(line, False)
    pending = bytearray()
    ended: Ended | None = None
    while True:
        poll = select.poll()
        poll.register(line, select.POLLIN | (select.POLLOUT if pending else 0))
        if ended is None and len(pending) < _BLOCK:
            poll.register(source, select.POLLIN)
        for descriptor, event in poll.poll():
            if descriptor == source:
                data = _read(source)
                if data == b"":
                    ended = "source"
                elif data is not None:
                    kept, leave = keep(data) if keep is not None else (data, False)
                    pending += kept
                    if leave:
                        return "left"
            else:
                if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    data = _read(line)
                    if data:
                        write_all(sink, data)
                    elif data is not None:
                        return "line"
                if event & select.POLLOUT and not _write_some(line, pending):
                    return "line"
        if ended is not None and not pending:
            return ended


def drain(line: int, sink: int) -> None:
    """Copy what is left from ``line`` to ``sink``, until the line ends."""
    os.set_blocking(line, True)
    while data := _read(line):
        write_all(sink, data)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, waiting where the other side is slow."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()


def _read(descriptor: int) -> bytes | None:
    """Return what is there, b"" at the end, None where nothing is there now. A pty that has hung up is at its end."""
    try:
        return os.read(descriptor, _BLOCK)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _write_some(line: int, pending: bytearray) -> bool:
    """Write what the line takes now; return whether it is still there."""
    try:
        del pending[: os.write(line, pending)]
    except BlockingIOError:
        pass
    except OSError:
        return False
    return True
