# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of a VM's memory and devices, between the VMM, which reaches its VM's directory only, and the snapshots.

The file names are from Cloud Hypervisor's docs/snapshot_restore.md.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import MicrovmError
from .vm_state import Vm

FILES = ("config.json", "state.json", "memory-ranges")
_NAME = ".memory"


def clear(vm: Vm) -> None:
    """Remove what a run that was killed has left."""
    shutil.rmtree(vm.paths.state / _NAME, ignore_errors=True)


@contextmanager
def _place(vm: Vm) -> Iterator[Path]:
    """Yield an empty directory that the VMM can write to; it is gone afterwards."""
    place = vm.paths.state / _NAME
    clear(vm)
    place.mkdir(mode=0o700)
    user = vm.user()
    if user is not None:
        os.chown(place, user.uid, user.gid)
    try:
        yield place
    finally:
        clear(vm)


@contextmanager
def written(vm: Vm, target: Path) -> Iterator[Path]:
    """Yield the directory for the VMM to write to; what it wrote is in ``target``, root's, when the block has ended well.

    Raises MicrovmError where it is not the files that a VMM writes: a VMM that was taken over could leave a link there.
    """
    with _place(vm) as place:
        yield place
        target.mkdir(mode=0o700)
        for name in FILES:
            moved = target / name
            (place / name).rename(moved)
            if not stat.S_ISREG(moved.lstat().st_mode) or moved.lstat().st_nlink != 1:
                raise MicrovmError(f"the VMM left something else than a file as '{name}'; look at what runs there")
            os.chown(moved, 0, 0, follow_symlinks=False)


@contextmanager
def readable(vm: Vm, source: Path) -> Iterator[Path]:
    """Yield a directory from which the VMM can read the files of a snapshot, without a copy of them."""
    with _place(vm) as place:
        user = vm.user()
        try:
            for name in FILES:
                os.link(source / name, place / name)
                if user is not None:  # by the name that the VMM cannot change
                    os.chown(source / name, 0, user.gid)
                    (source / name).chmod(0o640)
            yield place
        finally:
            for name in FILES:
                with open(source / name, "rb") as file:
                    os.fchown(file.fileno(), 0, 0)
                    os.fchmod(file.fileno(), 0o600)
