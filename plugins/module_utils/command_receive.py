# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``microvm receive``: what the key of a migration may run here, as sshd's forced command. It takes one VM's disks, or its memory."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

from . import relay, vm_moving, vm_record
from .command import Command
from .errors import MicrovmError
from .files import fsync_file
from .names import check_vm_name
from .vm_paths import Paths

_INCOMING = ".incoming"


def receive(arguments: argparse.Namespace) -> int:
    """Do what the other host asks for, of the two things that it may."""
    paths = Paths.of(check_vm_name(arguments.name), state_dir=arguments.state_dir, run_dir=arguments.run_dir)
    move = vm_moving.read(paths)
    if move is None or move.way != "from":
        raise MicrovmError("no VM of this name is expected here", vm=paths.name)
    match os.environ.get("SSH_ORIGINAL_COMMAND"):
        case "memory":
            _memory(paths)
        case "disks":
            _disks(paths)
        case other:
            raise MicrovmError(f"{other!r} is none of: memory, disks", vm=paths.name)
    return 0


def _memory(paths: Paths) -> None:
    """Connect the caller with the VMM that waits. Raises MicrovmError where it has ended."""
    with socket.socket(socket.AF_UNIX) as vmm:
        try:
            vmm.connect(str(paths.migration_socket))
        except OSError as error:
            raise MicrovmError(f"no VMM waits for the guest any more: {error.strerror}", vm=paths.name) from error
        relay.relay(vmm.fileno(), sys.stdin.fileno(), sys.stdout.fileno())


def _disks(paths: Paths) -> None:
    """Take the disks that are on record, out of an archive; nothing else in it is touched."""
    record = vm_record.read(paths) or {"config": {}}
    disks = [Path(disk["path"]) for disk in record["config"].get("disks") or ()]
    own = [disk for disk in disks if disk.parent == paths.state]
    place = paths.state / _INCOMING
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    try:
        extract = ["tar", "--extract", "--sparse", "--file=-", f"--directory={place}", "--no-same-owner", "--"]
        subprocess.run([*extract, *(disk.name for disk in own)], check=True, stdout=sys.stderr)
        for disk in own:
            status = disk.stat()
            arrived = place / disk.name
            if not stat.S_ISREG(arrived.lstat().st_mode) or arrived.lstat().st_nlink != 1:
                raise MicrovmError(f"'{disk.name}' came as something else than a file", vm=paths.name)
            os.chown(arrived, status.st_uid, status.st_gid, follow_symlinks=False)
            arrived.chmod(status.st_mode & 0o777)
            fsync_file(arrived)
            arrived.replace(disk)
    except (subprocess.CalledProcessError, OSError) as error:
        raise MicrovmError(f"the disks were not taken: {error}", vm=paths.name) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


COMMANDS = (Command("receive", "take a VM that another host sends; sshd calls this for a migration's key", receive),)
