# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``microvm receive``: what the key of a migration may run here, as sshd's forced command. It takes one VM, disks and memory."""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from . import disk_passes, migration_channel, migration_offer, relay, vm_arrival, vm_migration, vm_moving, vm_record
from .command import Command
from .errors import MicrovmError
from .memory_frames import Frames
from .names import check_vm_name
from .vm_paths import Paths
from .vm_state import Vm


def receive(arguments: argparse.Namespace) -> int:
    """Take the VM that is expected: its disks, then its memory. Have it go on where it is to run."""
    vm = Vm.of(check_vm_name(arguments.name), state_dir=arguments.state_dir, run_dir=arguments.run_dir)
    paths, asked = vm.paths, os.environ.get("SSH_ORIGINAL_COMMAND")
    if asked != migration_channel.WORD:
        raise MicrovmError(
            f"{asked!r} is not {migration_channel.WORD!r}, which is all that can be asked for", vm=paths.name
        )
    with _alone(paths):
        move, record = vm_moving.read(paths), vm_record.read(paths)
        if move is None or move.way != "from" or record is None:
            raise MicrovmError("no VM of this name is expected here", vm=paths.name)
        try:
            _disks(paths, record["config"])
        except OSError as error:
            raise MicrovmError(f"the disks were not taken: {error}", vm=paths.name) from error
        vm_arrival.check_backing(record["config"], move)
        if _memory(vm) and move.runs:
            vm_arrival.check(vm.client().info()["config"], record["config"])
            vm.client().act("resume")
    return 0


@contextmanager
def _alone(paths: Paths) -> Iterator[None]:
    """Raise MicrovmError where another connection has begun: a disk is not changed any more once a VMM may have opened it."""
    with suppress(FileNotFoundError), vm_moving.path(paths).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MicrovmError("the VM is being received already", vm=paths.name) from error
        yield
        return
    raise MicrovmError("no VM of this name is expected here", vm=paths.name)


def _disks(paths: Paths, config: Mapping[str, Any]) -> None:
    """Take the disks that are on record; what is sent can name no other file. Raises MicrovmError and OSError."""
    with ExitStack() as stack:
        targets = []
        for path in sorted(migration_offer.own_disks(config, paths)):
            targets.append(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
            stack.callback(os.close, targets[-1])
        disk_passes.take_passes(_read, partial(relay.write_all, 1), targets)


def _read(length: int) -> bytes:
    """Read as much from standard input, or what comes until its end. Nothing is read ahead: what follows is another's."""
    content = bytearray()
    while len(content) < length and (data := os.read(0, length - len(content))):
        content += data
    return bytes(content)


def _memory(vm: Vm) -> bool:
    """Connect the caller with the VMM that waits; return whether the guest is here, and said to be nowhere else.

    Raises MicrovmError where it has not come.
    """
    frames = Frames()
    with socket.socket(socket.AF_UNIX) as vmm:
        try:
            vmm.connect(str(vm.paths.migration_socket))
        except OSError as error:
            raise MicrovmError(f"no VMM waits for the guest any more: {error.strerror}", vm=vm.paths.name) from error
        relay.relay(vmm.fileno(), 0, 1, keep=frames)
    if not vm_migration.arrived(vm.paths.api_socket, lambda: vm.supervisor.pid() is not None):
        raise MicrovmError(f"the guest has not arrived; {vm.supervisor.last_words()}", vm=vm.paths.name)
    while not frames.left and (data := os.read(0, 65536)):
        frames(data)
    return frames.left


COMMANDS = (Command("receive", "take a VM that another host sends; sshd calls this for a migration's key", receive),)
