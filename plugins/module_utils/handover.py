# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Making room on one host for a second VMM that is to have the same TAPs, sockets and files as the first.

A VM's configuration goes to the new VMM word for word, and a TAP of one queue or a socket's name takes one VMM only. So
what the old one has open gets another name, and the new one finds its own under the right names. What was
renamed is noted beforehand, so that a run which is killed can be undone or finished: in ``upgrade.json`` in the VM's
directory, which only root writes.

The sockets are in the run directory, which is a unit's VMM's own. What is done there with names follows no link, so that
a VMM that is taken over gains no more by one than it has.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from . import tap
from .files import write_json
from .runner import Runner
from .tap import Tap
from .vm_paths import Paths

# Where a VM is once it was to be moved: gone to the other VMM, still here, or nowhere.
Place = Literal["there", "here", "lost"]
_SYS = Path("/sys/class/net")
_ASIDE = ".old"
_KEPT = ".kept"
_POLL_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Journal:
    """What is moved aside: TAPs, each by its name and the one that it has meanwhile, and files.

    ``next`` is the name that the new VMM has for its API. No VMM of this VM had it before: one removes it when it ends.
    ``timeout`` is in seconds, ``vmm`` the option of that name where another is asked for, ``ready`` what the guest has shown
    itself ready by. ``place`` and ``why`` say how the move ended, where another process is to be told.
    """

    taps: Mapping[str, str]
    files: tuple[str, ...]
    next: str
    timeout: float
    vmm: str | None = None
    ready: tuple[str, ...] = ()
    place: Place | None = None
    why: str = ""

    def write(self, paths: Paths) -> None:
        """Put it on disk."""
        write_json(_path(paths), asdict(self))

    @classmethod
    def read(cls, paths: Paths) -> Journal | None:
        """Return what is on disk, None where there is nothing."""
        try:
            written = json.loads(_path(paths).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls(**{**written, "files": tuple(written["files"]), "ready": tuple(written["ready"])})


def forget(paths: Paths) -> None:
    """Remove a VM's journal."""
    _path(paths).unlink(missing_ok=True)


def _path(paths: Paths) -> Path:
    return paths.state / "upgrade.json"


def plan(taps: tuple[Tap, ...], files: list[Path], api_socket: Path, *, timeout: float) -> Journal:
    """Return what is to be moved aside. A TAP's other name has its interface's index, which no other has."""
    names = {wanted.name: f"aside{(_SYS / wanted.name / 'ifindex').read_text().strip()}" for wanted in taps}
    # Its name begins with that of the first: by that, a process is known as this VM's.
    next_ = f"{api_socket}.{secrets.token_hex(4)}"
    there = tuple(str(path) for path in files if os.path.lexists(path))
    return Journal(names, there, next_, timeout)


def make_room(runner: Runner, journal: Journal, taps: tuple[Tap, ...]) -> None:
    """Move aside what the journal says, and make TAPs and log files anew. Raises CommandFailed."""
    for path in map(Path, journal.files):
        status = path.lstat()
        path.rename(f"{path}{_ASIDE}")
        if path.suffix == ".log":
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            os.chown(path, status.st_uid, status.st_gid)
    for wanted in taps:
        aside = journal.taps[wanted.name]
        runner.run(["ip", "link", "set", "dev", wanted.name, "down"])
        runner.run(["ip", "link", "set", "dev", wanted.name, "name", aside])
        tap.ensure(runner, replace(wanted, mac=(_SYS / aside / "address").read_text().strip()))


def finish(runner: Runner, journal: Journal) -> None:
    """Remove what the old VMM had. Raises CommandFailed."""
    for aside in journal.taps.values():
        tap.remove(runner, aside)
    for path in journal.files:
        Path(f"{path}{_ASIDE}").unlink(missing_ok=True)


def undo(runner: Runner, journal: Journal, taps: tuple[Tap, ...]) -> None:
    """Give the old VMM back what it had. Raises CommandFailed."""
    for wanted in taps:
        aside = journal.taps.get(wanted.name)
        if aside is not None and tap.exists(aside):
            tap.remove(runner, wanted.name)
            runner.run(["ip", "link", "set", "dev", aside, "name", wanted.name])
            tap.ensure(runner, wanted)
    for path in map(Path, journal.files):
        with suppress(FileNotFoundError):
            Path(f"{path}{_ASIDE}").replace(path)


@contextmanager
def sockets_kept(paths: list[Path]) -> Iterator[None]:
    """Keep the new VMM's sockets while the old one ends in the block: it removes the names of what once were its own."""
    stop = threading.Event()
    kept = {path: path.with_name(path.name + _KEPT) for path in paths}

    def watch() -> None:
        while not stop.is_set():
            for path, link in kept.items():
                if path.is_socket() and not link.exists():
                    with suppress(OSError):
                        os.link(path, link, follow_symlinks=False)
            time.sleep(_POLL_SECONDS)

    for link in kept.values():
        link.unlink(missing_ok=True)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for path, link in kept.items():
            if link.exists():
                if path.exists():
                    link.unlink()
                else:
                    link.rename(path)
