# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One VM's life: what is there, what is to be done about it, and doing it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from . import (
    log_rotation,
    migration_channel,
    tap,
    vm_config,
    vm_facts,
    vm_live,
    vm_moving,
    vm_plan,
    vm_record,
    vm_start,
    vm_stop,
    vm_unit,
    vm_upgrade,
    vmm_versions,
)
from .bulk import Outcome
from .errors import MicrovmError
from .files import locked_directory
from .names import check_vm_name
from .runner import Runner
from .vm_changes import Call, Change
from .vm_config import Spec
from .vm_paths import Paths
from .vm_plan import Apply, Decision, Step, Wanted
from .vm_state import Current, State, Vm, current
from .vm_unit import UnitStep

# The steps whose names do not say what was done.
_SAID = {"record": "recorded what is asked", "unit": "wrote the unit"}


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
    name = check_vm_name(item["name"])
    vm = Vm.of(
        name,
        state_dir=state_dir,
        run_dir=run_dir,
        runner=runner,
        supervisor=item.get("supervisor"),
        unit=item.get("unit"),
    )
    wanted: Wanted = item.get("state") or "running"
    with locked_directory(vm.paths.state, make=wanted != "absent" and not check_mode, mode=0o700):
        vm.supervisor.settle()
        recovered = [] if check_mode else vm_upgrade.recover(vm)
        now = current(vm)
        spec = _asked(item, vm.paths, now, wanted)
        asked_anew = spec is not None and (now.record is None or _differs(now.record, _asked_options(item, now), spec))
        steps = vm_plan.plan(wanted, now, asked_anew=asked_anew)
        changes: tuple[Change, ...] = ()
        decision = Decision()
        if spec is not None:
            vmm_versions.check(spec, vmm_versions.installed(runner, spec.vmm))
            identities = vm_start.identities(spec, check_mode=check_mode)
            if "start" not in steps and wanted != "stopped":
                changes = vm_live.drift(vm, now, spec, identities, replug=bool(item.get("replug")))
                apply: Apply = item.get("apply") or "live"
                decision = vm_plan.decide(changes, apply=apply, wanted=wanted, state=now.state)
            if decision.restart:
                steps = vm_plan.plan("restarted", now, asked_anew=asked_anew)
                steps += ["pause"] if wanted == "paused" else []
            todo = vm_live.after_boot(spec) if "start" in steps else decision.calls
            steps = _with_calls([*steps, *_tap_steps(vm, spec, now, steps)], todo)
        steps = _with_unit_steps(steps, vm_unit.steps(vm, spec, _asked_options(item, now), wanted))
        before = now
        stopped_by = None
        if not check_mode:
            stopped_by = _apply(vm, steps, item, spec, now, before_boot)
            now = current(vm)
            after = now.state
        else:
            after = _expected(wanted, now.state)
    facts = {} if after == "absent" else vm_facts.describe(vm, now)
    reasons = [change.words for change in decision.left]
    facts |= {"state": after, "stopped_by": stopped_by, "restart_required": bool(reasons), "restart_reasons": reasons}
    made = [change for change in changes if change not in decision.left]
    shown = asked_anew and not changes
    return Outcome(
        changed=bool(steps or recovered),
        facts=facts,
        before={"state": before.state, **_shown(made, "before"), **_config((before.record or {}).get("config"), shown)},
        after={"state": after, **_shown(made, "after"), **_config(spec.config if spec else None, shown)},
        actions=(*recovered, *_said(steps)),
    )


def _shown(changes: Sequence[Change], side: Literal["before", "after"]) -> dict[str, Any]:
    return {change.option: getattr(change, side) for change in changes}


def _config(config: Mapping[str, Any] | None, shown: bool) -> dict[str, Any]:
    return {"config": config} if shown and config is not None else {}


def _said(steps: Sequence[Any]) -> Iterator[str]:
    for step in steps:
        if isinstance(step, tuple):
            yield from (call.words for call in step)
        else:
            yield _SAID.get(step, step)


def _expected(wanted: Wanted, before: State) -> State:
    match wanted:
        case "restarted" | "running":
            return "running"
        case "present":
            return "stopped" if before == "absent" else before
        case other:
            return other


def _asked(item: Mapping[str, Any], paths: Paths, now: Current, wanted: Wanted) -> Spec | None:
    """Return what is asked for now: by the options, or where they name no payload, by the record.

    So a VM that is known can be stopped and started again by its name alone.
    """
    if item.get("payload") is not None:
        return vm_config.parse(item, paths) if wanted != "absent" else None
    if wanted in ("absent", "stopped"):
        return None
    if now.record is None:
        raise MicrovmError("is missing, and no VM of this name is known on the host", option="payload", vm=paths.name)
    return vm_config.parse(now.record["options"], paths)


def _options(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("state", "apply", "replug") and value is not None}


def _asked_options(item: Mapping[str, Any], now: Current) -> Mapping[str, Any]:
    return _options(item) if item.get("payload") is not None or now.record is None else now.record["options"]


def _with_unit_steps(steps: list[Any], unit_steps: list[UnitStep]) -> list[Any]:
    """Put what the unit says behind the record, which it is made of, and before what is done with the unit."""
    recorded = 1 if "record" in steps else 0
    return [*steps[:recorded], *unit_steps, *steps[recorded:]]


def _differs(record: Mapping[str, Any], asked: Mapping[str, Any], spec: Spec) -> bool:
    # Through JSON, in which tuples are lists and keys are strings.
    return bool(json.loads(json.dumps(asked)) != record["options"] or record["config"] != spec.config)


def _with_calls(steps: list[Any], calls: Sequence[Call]) -> list[Any]:
    """Put what the VMM is asked for before the pause, if there is one: a guest that is paused lets go of nothing."""
    if not calls:
        return steps
    last = 1 if "pause" in steps else 0
    return [*steps[: len(steps) - last], tuple(calls), *steps[len(steps) - last :]]


def _tap_steps(vm: Vm, spec: Spec, now: Current, steps: list[Step]) -> list[Any]:
    """Return what a living VM's TAPs lack; those of a VM that starts, and of NICs that come, are made on the way."""
    if "start" in steps or vm.supervisor.pid() is None:
        return []
    live = _live_taps(now)
    return [step for wanted in spec.taps if wanted.name in live for step in tap.missing(vm.runner, wanted)]


def _live_taps(now: Current) -> set[str | None]:
    return {net.get("tap") for net in now.info.get("config", {}).get("net") or ()}


def _apply(
    vm: Vm,
    steps: list[Any],
    item: Mapping[str, Any],
    spec: Spec | None,
    now: Current,
    before_boot: Callable[[], None] | None,
) -> str | None:
    """Do the steps in order; return what stopped the VM, if one of them did."""
    stopped_by = None
    grace = item.get("grace")
    for step in steps:
        if step == "stop":
            stopped_by = vm_stop.stop(vm, grace=vm_config.DEFAULT_GRACE if grace is None else grace)
            _clean(vm, spec, now)
        elif step == "clean":
            _clean(vm, spec, now)
        elif step == "remove":
            remove(vm, now.record)
        elif step in ("pause", "resume"):
            vm.client().act(step)
        elif step == "boot" and spec is not None:
            vm_start.boot(vm, spec, before_boot)
        elif isinstance(step, tuple) and spec is not None:
            vm_live.apply(vm, step, spec)
        elif step in ("unit", "enable", "disable"):
            vm_unit.apply(vm, step, spec, _asked_options(item, now))
        elif spec is not None:
            _apply_spec(vm, step, item, spec, now)
    return stopped_by


def _apply_spec(vm: Vm, step: Any, item: Mapping[str, Any], spec: Spec, now: Current) -> None:
    if step == "record":
        booted = {} if now.record is None else {"booted": now.record.get("booted")}
        vm_record.write(vm.paths, {"options": _asked_options(item, now), "config": spec.config, **booted})
    elif step == "start":
        vm_start.start(vm, spec)
    else:  # what a TAP of a living VM lacks
        for wanted in spec.taps:
            if wanted.name in _live_taps(now):
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
    migration_channel.clear(vm.paths)
    vm_moving.clear(vm.paths)
    vm.paths.record.unlink(missing_ok=True)
    with suppress(OSError):  # there are disks
        vm.paths.state.rmdir()
