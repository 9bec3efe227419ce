# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One VM's life: what is there, what is to be done about it, and doing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from . import (
    handover,
    log_rotation,
    migration_channel,
    tap,
    vm_facts,
    vm_live,
    vm_moving,
    vm_record,
    vm_start,
    vm_stop,
    vm_todo,
    vm_unit,
    vm_upgrade,
)
from .bulk import Outcome
from .files import locked_directory
from .names import check_vm_name
from .runner import Runner
from .vm_changes import Change
from .vm_config import Spec
from .vm_state import Current, State, Vm, current
from .vm_todo import Asked, Calls, TapRepairs, Todo, Work


def ensure(
    item: Mapping[str, Any],
    *,
    state_dir: Path,
    run_dir: Path,
    runner: Runner,
    check_mode: bool = False,
    before_boot: Callable[[], None] | None = None,
) -> Outcome:
    """Bring one VM to the state that its options ask for. Raises MicrovmError, and undoes a start that failed.

    ``before_boot`` is called once the VM is created, and before its guest runs.
    """
    vm = Vm.of(
        check_vm_name(item["name"]),
        state_dir=state_dir,
        run_dir=run_dir,
        runner=runner,
        supervisor=item.get("supervisor"),
        unit=item.get("unit"),
    )
    make = item.get("state") != "absent" and not check_mode
    with locked_directory(vm.paths.state, make=make, mode=0o700):
        vm.supervisor.settle()
        recovered = [] if check_mode else vm_upgrade.recover(vm)
        before = current(vm)
        asked = vm_todo.asked(item, vm.paths, before.record)
        todo = vm_todo.find(vm, asked, before, item, check_mode=check_mode)
        stopped_by = None
        now, state = before, _expected(asked, before.state)
        if not check_mode:
            stopped_by = _apply(vm, todo, asked, before, before_boot)
            now = current(vm)
            state = now.state
    reasons = [change.words for change in todo.left]
    return Outcome(
        changed=bool(todo.steps or recovered),
        facts={
            **({} if state == "absent" else vm_facts.describe(vm, now)),
            "state": state,
            "stopped_by": stopped_by,
            "restart_required": bool(reasons),
            "restart_reasons": reasons,
        },
        before=_shown("before", before.state, todo, asked, (before.record or {}).get("config")),
        after=_shown("after", state, todo, asked, asked.spec.config if asked.spec else None),
        actions=(*recovered, *todo.said()),
    )


def _expected(asked: Asked, before: State) -> State:
    """Return the state that a run would reach."""
    match asked.state:
        case "restarted" | "running":
            return "running"
        case "present":
            return "stopped" if before == "absent" else before
        case other:
            return other


def _shown(
    side: Literal["before", "after"], state: State, todo: Todo, asked: Asked, config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return one side of what diff mode shows: the differences, or where the VM does not run, its whole configuration."""
    compared = bool(todo.made or todo.left)
    whole = {"config": config} if asked.anew and not compared and config is not None else {}
    return {"state": state, **{change.option: _side(change, side) for change in todo.made}, **whole}


def _side(change: Change, side: Literal["before", "after"]) -> Any:
    return change.before if side == "before" else change.after


def _apply(vm: Vm, todo: Todo, asked: Asked, now: Current, before_boot: Callable[[], None] | None) -> str | None:
    """Do the steps in order; return what stopped the VM, if one of them did."""
    stopped_by = None
    for step in todo.steps:
        match step:
            case "stop":
                stopped_by = vm_stop.stop(vm, grace=asked.grace)
                _clean(vm, asked.spec, now)
            case "clean":
                _clean(vm, asked.spec, now)
            case "remove":
                remove(vm, now.record)
            case "pause" | "resume":
                vm.client().act(step)
            case "unit" | "enable" | "disable":
                vm_unit.apply(vm, step, asked.spec, asked.options)
            case _ if asked.spec is not None:
                _apply_spec(vm, step, asked, asked.spec, now, before_boot)
    return stopped_by


def _apply_spec(
    vm: Vm, step: Work, asked: Asked, spec: Spec, now: Current, before_boot: Callable[[], None] | None
) -> None:
    match step:
        case "record":
            booted = {} if now.record is None else {"booted": now.record.get("booted")}
            vm_record.write(vm.paths, {"options": asked.options, "config": spec.config, **booted})
        case "start":
            vm_start.start(vm, spec)
        case "boot":
            vm_start.boot(vm, spec, before_boot)
        case Calls(calls):
            vm_live.apply(vm, calls, spec)
        case TapRepairs():
            for wanted in vm_todo.taps_held(spec, now):
                tap.ensure(vm.runner, wanted)


def _clean(vm: Vm, spec: Spec | None, now: Current) -> None:
    """Remove what a VMM that ended has left, and the TAPs of NICs that the VM had and is not to have any more."""
    vm_stop.clean(vm)
    if spec is not None:
        for name in vm_record.taps(now.record or {}) - {wanted.name for wanted in spec.taps}:
            if not tap.has_carrier(name):
                tap.remove(vm.runner, name)


def remove(vm: Vm, record: Mapping[str, Any] | None) -> None:
    """Remove the TAPs on record, and what ch_vm has made. Disks are not its own: they stay, and are root's again."""
    vm_stop.clean(vm)
    for name in vm_record.taps(record or {}):
        tap.remove(vm.runner, name)
    vm_unit.remove(vm, (record or {}).get("config", {}))
    log_rotation.remove(vm.paths.serial_log)
    vm.paths.life.unlink(missing_ok=True)
    handover.forget(vm.paths)
    migration_channel.clear(vm.paths)
    vm_moving.clear(vm.paths)
    vm.paths.record.unlink(missing_ok=True)
    with suppress(OSError):  # there are disks
        vm.paths.state.rmdir()
