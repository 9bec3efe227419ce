# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Handing a VM from the VMM that has it to a second one on this host, and finding out where it is afterwards.

Who runs the second one, and how it becomes the VM's VMM, differs: vm_upgrade.py has it for a process of our own,
unit_handover.py for a unit.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from . import handover, log_rotation, ready_record, tap, vm_migration, vm_start
from .errors import MicrovmError
from .handover import Journal, Place
from .vm_config import Spec
from .vm_state import Current, Vm
from .vmm_process import Supervisor, names, wait_for_end

_END_SECONDS = 10.0


class Successor(Supervisor, Protocol):
    """The second VMM."""

    def become(self) -> bool:
        """Be the VM's VMM from now on; return False where it cannot be had so from here. Raises MicrovmError."""


def log(vm: Vm) -> Path:
    """Return what the second VMM of a VM prints to, where no unit runs it."""
    return vm.paths.vmm_log.with_name("vmm.next.log")


def event_log(vm: Vm) -> Path:
    """Return what the second VMM of a VM reports to."""
    return vm.paths.event_log.with_name("events.next.json")


def arguments(vm: Vm, journal: Journal, binary: str) -> list[str]:
    """Return the second VMM's argument vector."""
    return [binary, "--api-socket", f"path={journal.next}", "--event-monitor", f"path={event_log(vm)}"]


def begin(vm: Vm, now: Current, spec: Spec, *, timeout: float, vmm: str | None) -> Journal:
    """Note what is to be done to move the VM, before any of it is. ``timeout`` and ``vmm`` are the journal's."""
    files = _sockets(vm)
    if now.info["config"]["serial"].get("file") == str(vm.paths.serial_log):
        log_rotation.rotate(vm.paths.serial_log, size=1)
        files.append(vm.paths.serial_log)
    taps = tuple(wanted for wanted in spec.taps if tap.has_carrier(wanted.name))
    ready = ready_record.seen(vm.paths, ready_record.boot(vm.paths, now.pid))
    journal = handover.plan(taps, files, vm.paths.api_socket, timeout=timeout)
    journal = replace(journal, vmm=vmm, ready=tuple(ready))
    journal.write(vm.paths)
    return journal


def _sockets(vm: Vm) -> list[Path]:
    return [vm.paths.vsock_socket, vm.paths.serial_socket]


def move(vm: Vm, spec: Spec, journal: Journal, next_: Successor, start: Callable[[], object]) -> tuple[Place, str]:
    """Have the second VMM, which ``start`` starts, take the VM over. Return where that is then, and what was said."""
    user = vm.user()
    owner = None if user is None else user.uid
    taps = tuple(replace(wanted, owner=owner) for wanted in spec.taps if wanted.name in journal.taps)
    memory = vm.client().info()["config"]["memory"]
    try:
        start()
        vm_start.wait_for_api(Path(journal.next), next_, who="the VMM that is to receive the VM")
        vm_migration.begin_receiving(Path(journal.next), vm.paths.migration_socket, lambda: next_.pid() is not None)
        handover.make_room(vm.runner, journal, taps)
        with handover.sockets_kept(_sockets(vm)):
            _left, why = vm_migration.send(
                vm,
                f"unix:{vm.paths.migration_socket}",
                # Memory that is shared is handed over, other memory copied.
                local=bool(memory.get("shared") or memory.get("hugepages")),
                timeout=journal.timeout,
                give_up=lambda: next_.signal(signal.SIGKILL),
            )
    except MicrovmError as error:
        why = error.message
    except BaseException:
        settle(vm, journal, spec, next_)
        raise
    return settle(vm, journal, spec, next_), why


def settle(vm: Vm, journal: Journal, spec: Spec, next_: Successor) -> Place:
    """Find out where the guest is, and have it be there alone, under the names that others know."""
    pid = vm.supervisor.pid()
    leads = pid is not None and names(pid, Path(journal.next))  # a run that was killed has come so far
    place: Place
    if leads or (_has_arrived(vm, journal, next_) and next_.become()):
        handover.finish(vm.runner, journal)
        for path, name in (
            (Path(journal.next), vm.paths.api_socket),
            (event_log(vm), vm.paths.event_log),
            (log(vm), vm.paths.vmm_log),
        ):
            with suppress(FileNotFoundError):
                path.replace(name)
        place = "there"
    else:
        next_.signal(signal.SIGKILL)
        wait_for_end(next_, _END_SECONDS)
        handover.undo(vm.runner, journal, spec.taps)
        next_.forget()
        for path in (Path(journal.next), event_log(vm), log(vm)):
            path.unlink(missing_ok=True)
        place = "here" if vm.supervisor.pid() is not None else "lost"
    vm.paths.migration_socket.unlink(missing_ok=True)
    return place


def _has_arrived(vm: Vm, journal: Journal, next_: Successor) -> bool:
    """Return whether the second VMM has the VM, and the first one nothing any more."""
    api_socket = Path(journal.next)
    there = next_.pid() is not None and vm_migration.has_vm(api_socket)
    if vm.supervisor.pid() is None:
        return there or vm_migration.arrived(api_socket, lambda: next_.pid() is not None)
    if there and not wait_for_end(vm.supervisor, _END_SECONDS):
        # Its guest has gone on elsewhere, so that it must not.
        vm.supervisor.signal(signal.SIGKILL)
        wait_for_end(vm.supervisor, _END_SECONDS)
    return there
