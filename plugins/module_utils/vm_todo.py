# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Everything that is to be done about one VM, in order: the plan, with what its unit, its TAPs and its devices lack."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from . import readiness, tap, vm_config, vm_live, vm_plan, vm_start, vm_unit, vmm_versions
from .errors import MicrovmError
from .vm_changes import Call, Change
from .vm_config import Spec
from .vm_paths import Paths
from .vm_plan import Apply, Decision, Step, Wanted
from .vm_state import Current, Vm
from .vm_unit import UnitStep

# Options that say what is to be done, and not what the VM is.
_OF_THE_CALL = ("state", "apply", "replug")
# The steps whose names do not say what was done.
_SAID = {"record": "recorded what is asked", "unit": "wrote the unit"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for. ``spec`` is None where it does not matter; ``anew``: it differs from what is on record.

    ``grace``: the seconds that a stop leaves the guest.
    """

    state: Wanted
    options: Mapping[str, Any]
    grace: float
    spec: Spec | None
    anew: bool


@dataclass(frozen=True, slots=True)
class Calls:
    """What the VMM of a VM that runs is asked for."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class TapRepairs:
    """What the TAPs of a VM that runs lack, in words."""

    missing: tuple[str, ...]


Work: TypeAlias = "Step | UnitStep | Calls | TapRepairs"


@dataclass(frozen=True, slots=True)
class Todo:
    """What is to be done, and of the differences that were found those that go away by it and those that are left."""

    steps: tuple[Work, ...]
    made: tuple[Change, ...] = ()
    left: tuple[Change, ...] = ()

    def said(self) -> Iterator[str]:
        """Say in words what is done, as actions."""
        for step in self.steps:
            match step:
                case Calls(calls):
                    yield from (call.words for call in calls)
                case TapRepairs(missing):
                    yield from missing
                case name:
                    yield _SAID.get(name, name)


def asked(item: Mapping[str, Any], paths: Paths, record: Mapping[str, Any] | None) -> Asked:
    """Return what is asked for now: by the options, or where they name no payload, by the record.

    So a VM that is known can be stopped and started again by its name alone. Raises MicrovmError, naming the option.
    """
    wanted: Wanted = item.get("state") or "running"
    given = {key: value for key, value in item.items() if key not in _OF_THE_CALL and value is not None}
    by_record = "payload" not in given
    options: Mapping[str, Any] = record["options"] if by_record and record is not None else given
    grace = next((known["grace"] for known in (given, options) if "grace" in known), vm_config.DEFAULT_GRACE)
    if wanted == "absent" or (by_record and wanted == "stopped"):
        return Asked(wanted, options, grace, None, anew=False)
    if by_record and record is None:
        raise MicrovmError("is missing, and no VM of this name is known on the host", option="payload", vm=paths.name)
    spec = vm_config.parse(options, paths)
    return Asked(wanted, options, grace, spec, anew=record is None or _differs(record, options, spec))


def _differs(record: Mapping[str, Any], options: Mapping[str, Any], spec: Spec) -> bool:
    # Through JSON, in which tuples are lists and keys are strings.
    return bool(json.loads(json.dumps(options)) != record["options"] or record["config"] != spec.config)


def find(vm: Vm, asked: Asked, now: Current, item: Mapping[str, Any], *, check_mode: bool) -> Todo:
    """Return what is to be done, changing nothing. Raises MicrovmError for what cannot be.

    Of ``item`` the options count that say what is to be done.
    """
    spec = asked.spec
    steps = vm_plan.plan(asked.state, now, asked_anew=asked.anew)
    work: list[Work] = [*steps]
    changes: tuple[Change, ...] = ()
    decision = Decision()
    if spec is not None:
        release = vmm_versions.installed(vm.runner, spec.vmm)
        vmm_versions.check(spec, release)
        readiness.check_release(asked.options, release)
        identities = vm_start.identities(spec, check_mode=check_mode)
        if "start" not in steps and asked.state != "stopped":
            changes = vm_live.drift(vm, now, spec, identities, replug=bool(item.get("replug")))
            apply = cast(Apply, item.get("apply") or "live")
            decision = vm_plan.decide(changes, apply=apply, wanted=asked.state, state=now.state)
        if decision.restart:
            steps = vm_plan.plan("restarted", now, asked_anew=asked.anew)
            steps += ["pause"] if asked.state == "paused" else []
        calls = vm_live.after_boot(spec, release) if "start" in steps else decision.calls
        # The TAPs of a VM that starts, and of NICs that come, are made on the way.
        runs_on = now.pid is not None and not {"start", "stop"} & {*steps}
        repairs = tuple(_repairs(vm, spec, now)) if runs_on else ()
        work = _in_order(steps, calls, repairs)
    return Todo(
        steps=tuple(_with_unit_steps(work, vm_unit.steps(vm, spec, asked.options, asked.state))),
        made=tuple(change for change in changes if change not in decision.left),
        left=decision.left,
    )


def taps_held(spec: Spec, now: Current) -> list[tap.Tap]:
    """Return those TAPs that a VM which runs has open, and is to have."""
    held = {net.get("tap") for net in now.info.get("config", {}).get("net") or ()}
    return [wanted for wanted in spec.taps if wanted.name in held]


def _repairs(vm: Vm, spec: Spec, now: Current) -> Iterator[str]:
    for wanted in taps_held(spec, now):
        yield from tap.missing(vm.runner, wanted)


def _in_order(steps: Sequence[Step], calls: tuple[Call, ...], repairs: tuple[str, ...]) -> list[Work]:
    """Put the calls before the pause, if there is one: a guest that is paused lets go of nothing."""
    last = [step for step in steps if step == "pause"]
    work: list[Work] = [step for step in steps if step != "pause"]
    work += [TapRepairs(repairs)] if repairs else []
    work += [Calls(calls)] if calls else []
    return [*work, *last]


def _with_unit_steps(work: Sequence[Work], unit_steps: Sequence[UnitStep]) -> list[Work]:
    """Put what the unit says behind the record, which it is made of, and before what is done with the unit."""
    recorded = 1 if "record" in work else 0
    return [*work[:recorded], *unit_steps, *work[recorded:]]
