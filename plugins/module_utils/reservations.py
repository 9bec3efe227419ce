# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What calls that are under way are about to put on record, so that others do not promise it as well.

Each has a file in ``<state_dir>/reservations``, which it keeps locked (flock(2)) for as long as it lives. The kernel drops
the lock of a call that is killed: what it has put on record by then counts, and nothing else does.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from .files import locked_directory


def taking_turns(state_dir: Path) -> AbstractContextManager[None]:
    """Have calls take turns, each to look at what is promised and to reserve."""
    return locked_directory(_directory(state_dir), make=True, mode=0o700)


@contextmanager
def held(state_dir: Path, reserved: Mapping[str, Any]) -> Iterator[None]:
    """Keep a reservation, by the VMs' names. It is made in the caller's turn, and is gone when the block has ended."""
    directory = _directory(state_dir)
    for path in directory.iterdir():
        if not _lives(path):
            path.unlink(missing_ok=True)
    descriptor, name = tempfile.mkstemp(dir=directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps(reserved).encode())
        yield
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(descriptor)
        with suppress(OSError):  # others have theirs there
            directory.rmdir()


def read(state_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield what each living call has reserved."""
    with suppress(FileNotFoundError):
        for path in sorted(_directory(state_dir).iterdir()):
            # One that ends in between has nothing reserved any more.
            with suppress(FileNotFoundError, ValueError):
                content = path.read_bytes()
                if _lives(path):
                    yield json.loads(content)


def _lives(path: Path) -> bool:
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _directory(state_dir: Path) -> Path:
    return state_dir / "reservations"
