# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Moving a VM to a second VMM within its unit, of which that is the main process afterwards.

Only the unit itself can start a process in its sandbox, and name another main process. So it is reloaded, with settings that are
there for as long as that takes. The first of the reload's commands starts the second VMM as the unit starts the first one, but
forks: as a child of systemd it can be a main process whose end systemd is told of. The second, ``microvm handover``, moves the
VM, as root. While it runs the unit stays, though its main process ends, and it lives on where the module that has asked for
it does not. Facts from systemd.service(5), sd_notify(3) and src/core/service.c (SERVICE_RELOAD), tried with systemd 252.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import limits, sd_notify, systemd_dropin, unit_cgroup, vm_handover, vm_life, vm_prepare
from .errors import CommandFailed, MicrovmError
from .handover import Journal, Place
from .systemd_unit import SystemdUnit
from .vm_config import Spec
from .vm_state import Vm
from .vmm_process import MainProcess

# What a move may take beside the time that it is given: the VMM's start, and finding out where the guest is.
_MARGIN_SECONDS = 180
_START_SECONDS = 2.0
_POLL_SECONDS = 0.01


class UnitSuccessor(MainProcess):
    """The second VMM of a unit, by its process id; 0 for none."""

    def become(self) -> bool:
        """See Successor.become. Only a process that the unit's reload has started can have it so."""
        listens = sd_notify.listens()
        if listens:
            sd_notify.tell(f"MAINPID={self._pid}")
        return listens


def successor(journal: Journal, member: int | None) -> UnitSuccessor:
    """Return the second VMM in the unit that the process ``member`` is in: what has its API at the journal's ``next``."""
    argument = f"path={journal.next}"
    found = [] if member is None else unit_cgroup.peers(member)
    return UnitSuccessor(next((pid for pid in found if argument in _command_line(pid)), 0))


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


# ---- What the module does, outside of the unit ----


def require_command(vm: Vm) -> None:
    """Raise MicrovmError where the host's program ``microvm`` is of a release that cannot move VMs."""
    if vm.runner.run([systemd_dropin.COMMAND, "handover", "--help"], check=False).returncode != 0:
        raise MicrovmError(
            f"'{systemd_dropin.COMMAND}' on this host is of an older release, and cannot move a VM within its unit; run the "
            "role microvm.cloud_hypervisor.host",
            option="name",
        )


def ask(vm: Vm, unit: SystemdUnit, spec: Spec, options: Mapping[str, Any], journal: Journal) -> tuple[Place, str]:
    """Have the unit move its VM as the journal says. Return where that is then, and what was said."""
    text = systemd_dropin.render_handover(
        vm.paths,
        vm_handover.arguments(vm, journal, vm_prepare.binary(spec)),
        seconds=journal.timeout + _MARGIN_SECONDS,
        limits=limits.for_two(options.get("limits") or {}, spec.config),
    )
    try:
        unit.reload(text)
        why = f"the unit's reload ended before the move did; {unit.last_words()}"
    except CommandFailed as error:
        why = error.message
    ended = Journal.read(vm.paths) or journal
    if ended.place is None:
        place = vm_handover.settle(vm, journal, spec, successor(journal, unit.pid()))
    else:
        place, why = ended.place, ended.why
    unit.end_reload()
    return place, why


def recover(vm: Vm, unit: SystemdUnit) -> None:
    """Take back what a run that was killed has set. Raises MicrovmError where the unit itself still goes on with it."""
    if unit.reloading():
        raise MicrovmError("the VM is being moved to another VMM; wait until that is over", option="name")
    unit.end_reload()


# ---- What the unit does ----


def take_over(vm: Vm, spec: Spec, journal: Journal) -> Place:
    """Move the VM to the second VMM, as the unit's own process. Note how that ended, and return it."""
    started: UnitSuccessor = successor(journal, None)
    deadline = time.monotonic() + _START_SECONDS
    while started.pid() is None and time.monotonic() < deadline:
        # While it is executed a process has no command line.
        started = successor(journal, vm.supervisor.pid())
        time.sleep(_POLL_SECONDS)
    place, why = vm_handover.move(vm, spec, journal, started, lambda: None)
    _note(vm, journal, place, why)
    return place


def clear(vm: Vm, spec: Spec) -> None:
    """Clean up after a move in whose middle the unit, and with it both VMMs, has ended."""
    journal = Journal.read(vm.paths)
    if journal is not None and journal.place is None:
        place = vm_handover.settle(vm, journal, spec, UnitSuccessor(0))
        _note(vm, journal, place, "the unit ended in the middle of it")


def _note(vm: Vm, journal: Journal, place: Place, why: str) -> None:
    replace(journal, place=place, why=why).write(vm.paths)
    life = vm_life.read(vm.paths)
    if place == "lost" and life is not None:
        vm_life.write(vm.paths, replace(life, error=f"lost in a move to another VMM: {why}"))
