# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of the host that a VM's user is given.

The VM's directory stays root's, so that a VMM that is taken over cannot put another file in a place that root reads.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import qemu_img
from .errors import MicrovmError
from .runner import Runner
from .vm_paths import Paths
from .vm_user import User

_PAYLOAD = ("kernel", "initramfs", "firmware", "igvm")
# What VmConfig calls read-only, by the device.
_READ_ONLY = {"disks": "readonly", "pmem": "discard_writes"}
# Devices that a backend serves at a socket, and the property that names it.
_BACKENDS = (
    ("fs", "socket"),
    ("user_devices", "socket"),
    ("generic_vhost_user", "socket"),
    ("disks", "vhost_socket"),
    ("net", "vhost_socket"),
)
# path_resolution(7)
_MOST_LINKS = 40


@dataclass(frozen=True, slots=True)
class Use:
    """A file that the VMM opens, by the option that names it, and whether it writes to it."""

    option: str
    path: Path
    writes: bool = False


def files(config: Mapping[str, Any]) -> list[Use]:
    """Return the files that a VmConfig names, without what qcow2 images are based on."""
    payload = config["payload"]
    uses = [Use(f"payload.{key}", Path(payload[key])) for key in _PAYLOAD if payload.get(key)]
    for zone in config["memory"].get("zones") or () if "memory" in config else ():
        if zone.get("file"):
            uses.append(Use(f"memory.zones.{zone['id']}", Path(zone["file"]), writes=True))
    for device, flag in _READ_ONLY.items():
        for entry in config.get(device) or ():
            path = entry.get("path") or entry.get("file")
            if path is not None:
                uses.append(Use(f"{device}.{entry.get('id', path)}", Path(path), writes=not entry.get(flag)))
    for console in ("serial", "console", "debug_console"):
        settings = config.get(console) or {}
        if settings.get("mode") == "File":
            uses.append(Use(f"{console}.file", Path(settings["file"]), writes=True))
    return uses


def backing_files(config: Mapping[str, Any]) -> Iterator[Use]:
    """Return the files that the qcow2 images of a VmConfig are based on, one below the other."""
    for disk in config.get("disks") or ():
        seen: set[Path] = set()
        path: Path | None = Path(disk["path"]) if disk.get("image_type") == "Qcow2" and disk.get("path") else None
        while path is not None:
            with suppress(FileNotFoundError):
                path = qemu_img.backing_file(path)
                if path is not None and path not in seen:
                    seen.add(path)
                    yield Use(f"disks.{disk['id']}", path)
                    continue
            path = None


def sockets(config: Mapping[str, Any]) -> list[Use]:
    """Return the sockets of the backends that serve a VmConfig's devices, without those that the VMM makes itself."""
    uses = [
        Use(f"{kind}.{device.get('id', device[key])}", Path(device[key]), writes=True)
        for kind, key in _BACKENDS
        for device in config.get(kind) or ()
        if key in device and device.get("vhost_mode") != "Server"
    ]
    tpm = config.get("tpm")
    return [*uses, Use("tpm", Path(tpm["socket"]), writes=True)] if tpm else uses


def hand_over(config: Mapping[str, Any], paths: Paths, user: User, runner: Runner) -> None:
    """Give a VM's user what its VMM needs. Raises MicrovmError, naming the option, for what it cannot be given."""
    os.chown(paths.state, 0, user.gid)
    paths.state.chmod(0o710)
    paths.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chown(paths.run, user.uid, user.gid)
    for use in [*files(config), *backing_files(config)]:
        if use.writes:
            give(use, user)
        elif use.path.parent == paths.state:
            os.chown(use.path, 0, user.gid)
            use.path.chmod(0o640)
        else:
            _require(use, "-r", "read", user, runner)
    for use in sockets(config):
        if use.path.exists():
            _require(use, "-w", "written to", user, runner)


def give(use: Use, user: User) -> None:
    """Make a file the user's own; one that is written to and missing is made.

    Raises MicrovmError for another's file, and for one of root's where others can have the path lead to another file.
    """
    if not use.path.exists() and use.option.endswith(".file"):
        _require_roots(use)
        os.close(os.open(use.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with _opened(use.path) as (file, status):
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            return
        if status.st_uid not in (0, user.uid):
            raise MicrovmError(
                f"'{use.path}' belongs to the user {_name(status.st_uid)}, and the VM would write to it; a VM has its files "
                f"to itself: give it one of root's or of {user.name}'s",
                option=use.option,
            )
        if status.st_uid != user.uid:
            _require_roots(use)
        os.chown(file, user.uid, user.gid)
        os.chmod(file, 0o600)


def take_back(config: Mapping[str, Any], user: User) -> None:
    """Make root's what is a VM's user's, so that whoever has its id next can do nothing with it."""
    for use in files(config):
        with suppress(FileNotFoundError), _opened(use.path) as (file, status):
            if status.st_uid == user.uid:
                os.chown(file, 0, 0)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield a name of a file that leads nowhere else whatever becomes of its path (proc_pid_fd(5)), and what the file is."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}", os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _require_roots(use: Use) -> None:
    """Raise MicrovmError where others than root can have the path lead to another file, with which they would be given that."""
    here, rest, links = Path("/"), list(use.path.absolute().parts[1:]), 0
    while rest:
        status = here.stat()
        # In a directory that is sticky, others can make names, and change their own only.
        open_to_others = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        there = here / rest.pop(0)
        link = there.is_symlink()
        links += link
        if (
            links > _MOST_LINKS
            or open_to_others
            or {status.st_uid, there.lstat().st_uid if link else 0} - {0, os.geteuid()}
        ):
            raise MicrovmError(
                f"others than root can change where '{use.path}' leads, in '{here}'; have it in directories that are root's "
                "alone",
                option=use.option,
            )
        if link:
            rest = [*(here / there.readlink()).parts[1:], *rest]
            here = Path("/")
        elif there.name == "..":
            here = here.parent
        else:
            here = there


def _name(uid: int) -> str:
    try:
        return f"'{pwd.getpwuid(uid).pw_name}'"
    except KeyError:
        return str(uid)


def _require(use: Use, access: Literal["-r", "-w"], word: str, user: User, runner: Runner) -> None:
    as_user = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
    if runner.run([*as_user, "test", access, str(use.path)], check=False).returncode != 0:
        raise MicrovmError(
            f"'{use.path}' cannot be {word} by the VM's user '{user.name}'; give others what that takes, for its directories as "
            "well, or put it where they have it",
            option=use.option,
        )
