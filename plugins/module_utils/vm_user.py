# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The system user that a VM's VMM runs as: one for each VM."""

from __future__ import annotations

import grp
import pwd
from base64 import b32encode
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from .errors import MicrovmError
from .files import locked_directory
from .runner import Runner

# utmp(5), UT_NAMESIZE: useradd takes at most 32 characters, and some tools one less.
_MAX_LENGTH = 31
_PREFIX = "vm-"


@dataclass(frozen=True, slots=True)
class User:
    """A user, and the group of the same name."""

    name: str
    uid: int
    gid: int


def user_name(vm: str) -> str:
    """Return the name of a VM's user.

    A VM's name that is too long is cut, and its digest is put behind a ``_``, which no VM's name has: two VMs never share
    a user.
    """
    name = f"{_PREFIX}{vm}"
    if len(name) <= _MAX_LENGTH:
        return name
    digest = b32encode(sha256(vm.encode()).digest()).decode().lower()[:12]
    return f"{name[: _MAX_LENGTH - len(digest) - 1]}_{digest}"


def find(vm: str) -> User | None:
    """Return a VM's user, or None where there is none. Raises MicrovmError where the name is another's."""
    try:
        entry = pwd.getpwnam(user_name(vm))
    except KeyError:
        return None
    if entry.pw_gecos != _comment(vm):
        raise MicrovmError(
            f"the user '{entry.pw_name}' is there, and is not the VM's: its comment is {entry.pw_gecos!r}, not "
            f"{_comment(vm)!r}; remove that user, or give the VM another name",
            vm=vm,
        )
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid)


def ensure(vm: str, runner: Runner) -> User:
    """Return a VM's user; make it where there is none. Raises CommandFailed."""
    found = find(vm)
    if found is None:
        with _one_at_a_time():
            argv = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
            argv += ["--shell", "/usr/sbin/nologin", "--comment", _comment(vm), user_name(vm)]
            runner.run(argv)
        found = find(vm)
        if found is None:
            raise MicrovmError(f"useradd has made no user '{user_name(vm)}'", vm=vm)
    return found


def remove(vm: str, runner: Runner) -> bool:
    """Remove a VM's user; return whether there was one. Raises CommandFailed, and MicrovmError as ``find`` does."""
    if find(vm) is None:
        return False
    with _one_at_a_time():
        runner.run(["userdel", user_name(vm)])
    return True


def group_id(name: str) -> int | None:
    """Return a group's id, or None where there is none."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _comment(vm: str) -> str:
    return f"microVM {vm}"


def _one_at_a_time() -> AbstractContextManager[None]:
    """Have useradd and userdel take turns: those that meet fail."""
    return locked_directory(Path("/etc"), make=False)
