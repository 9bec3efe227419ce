# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bringing a VM that runs to the VMM that is installed now, without a reboot of its guest: a migration on one host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import (
    handover,
    ready_record,
    unflushed,
    unit_handover,
    vm_config,
    vm_handover,
    vm_migration,
    vm_prepare,
    vm_record,
    vm_restart,
    vm_unit,
    vmm_versions,
)
from .bulk import Outcome
from .errors import MicrovmError
from .files import locked_directory
from .handover import Journal, Place
from .names import check_vm_name
from .runner import Runner
from .systemd_unit import SystemdUnit
from .vm_config import Spec
from .vm_schema import Version, spelled
from .vm_state import Current, Vm, current
from .vmm_process import DetachedProcess


def ensure(
    item: Mapping[str, Any], *, state_dir: Path, run_dir: Path, runner: Runner, check_mode: bool = False
) -> Outcome:
    """Have one VM run in the VMM that is installed. Raises MicrovmError; the guest then runs on as it did.

    Where the VMM dies of it the guest is lost: it is started again from its disks, and MicrovmError says so.
    """
    vm = Vm.of(check_vm_name(item["name"]), state_dir=state_dir, run_dir=run_dir, runner=runner)
    with locked_directory(vm.paths.state, make=False):
        vm.supervisor.settle()
        cleared = [] if check_mode else recover(vm)
        now = current(vm)
        if now.record is None:
            raise MicrovmError("no VM of this name is known on the host", option="name")
        options = {**now.record["options"], **({"vmm": item["vmm"]} if item.get("vmm") else {})}
        spec = vm_config.parse(options, vm.paths)
        wanted = vmm_versions.installed(runner, spec.vmm)
        if now.pid is None:
            return Outcome(changed=bool(cleared), facts=_facts(None, wanted, None), actions=tuple(cleared))
        running = vmm_versions.parse(vm.client().ping()["version"])
        if running == wanted and not item.get("force"):
            return Outcome(changed=bool(cleared), facts=_facts(running, wanted, now.pid), actions=tuple(cleared))
        _refuse(now, running, wanted)
        unflushed.refuse(spec.config, accepted=item.get("accept_unflushed"), what="a move to another VMM")
        if not check_mode:
            timeout = item.get("timeout") or vm_migration.DEFAULT_TIMEOUT
            _upgrade(vm, now, spec, options, timeout=timeout)
            now = current(vm)
    said = f"moved the guest from {spelled(running)} to {spelled(wanted)}"
    return Outcome(
        changed=True,
        facts=_facts(running, wanted, now.pid),
        before={"vmm_version": "{}.{}".format(*running)},
        after={"vmm_version": "{}.{}".format(*wanted)},
        actions=(*cleared, said),
    )


def _facts(running: Version | None, wanted: Version, pid: int | None) -> dict[str, Any]:
    return {
        "vmm_version_before": None if running is None else "{}.{}".format(*running),
        "vmm_version": "{}.{}".format(*wanted),
        "pid": pid,
    }


def _refuse(now: Current, running: Version, wanted: Version) -> None:
    if now.state not in ("running", "paused"):
        raise MicrovmError(f"the VM is {now.state}: only a guest that runs or is paused can be moved", option="name")
    if wanted < running:
        raise MicrovmError(
            f"runs in {spelled(running)}, and {spelled(wanted)} is asked for: a VMM takes over from its own "
            "version or an older one; stop the VM and start it to go back",
            option="vmm",
        )
    if why := vm_migration.refusal(running, paused=now.state == "paused"):
        raise MicrovmError(why, option="name")


def _upgrade(vm: Vm, now: Current, spec: Spec, options: Mapping[str, Any], *, timeout: float) -> None:
    """Move the VM. Raises MicrovmError where it did not get there."""
    unit = vm.supervisor if isinstance(vm.supervisor, SystemdUnit) else None
    if unit is not None:
        unit_handover.require_command(vm)
    vmm = options.get("vmm")
    other = vmm if vmm != (now.record or {})["options"].get("vmm") else None
    journal = vm_handover.begin(vm, now, spec, timeout=timeout, vmm=other)
    if unit is not None:
        place, why = unit_handover.ask(vm, unit, spec, options, journal)
    else:
        next_ = _process(vm, journal)
        argv = vm_handover.arguments(vm, journal, vm_prepare.binary(spec))
        place, why = vm_handover.move(vm, spec, journal, next_, lambda: next_.start(argv))
    _end(vm, journal, place)
    if place == "lost":
        vm_restart.restart_lost(vm, f"the VMM died as it handed its VM over, and with it the guest ({why})", spec)
    if place == "here":
        raise MicrovmError(f"the guest runs on in the VMM that it was in: {why}")


def _process(vm: Vm, journal: Journal) -> DetachedProcess:
    """Return the second VMM where both are processes of our own."""
    return DetachedProcess(
        vm.paths.run, api_socket=Path(journal.next), log=vm_handover.log(vm), pid_file="vmm.next.pid"
    )


def _end(vm: Vm, journal: Journal, place: Place) -> None:
    """Have on record what the VM runs in, and that nothing is under way any more."""
    if place == "there":
        ready_record.carry(vm.paths, vm.supervisor.pid(), journal.ready)
    if place == "there" and journal.vmm is not None:
        record = vm_record.read(vm.paths) or {}
        options = {**record["options"], "vmm": journal.vmm}
        vm_record.write(vm.paths, {**record, "options": options})
        vm_unit.apply(vm, "unit", vm_config.parse(options, vm.paths), options)
    handover.forget(vm.paths)


def recover(vm: Vm) -> list[str]:
    """Finish or undo what a run that was killed has begun; return what was done, in words.

    Raises MicrovmError where the VM's unit goes on with it by itself.
    """
    journal = Journal.read(vm.paths)
    if journal is None:
        return []
    unit = vm.supervisor if isinstance(vm.supervisor, SystemdUnit) else None
    if unit is not None:
        unit_handover.recover(vm, unit)
    place = journal.place
    if place is None:
        spec = vm_config.parse((vm_record.read(vm.paths) or {})["options"], vm.paths)
        next_ = _process(vm, journal) if unit is None else unit_handover.successor(journal, unit.pid())
        place = vm_handover.settle(vm, journal, spec, next_)
    _end(vm, journal, place)
    words = {
        "there": "finished the guest's move to another VMM, which a run that did not end had begun",
        "here": "undid a move to another VMM, which a run that did not end had begun",
        "lost": "cleaned up after a move to another VMM, which neither VMM has survived",
    }
    return [words[place]]
