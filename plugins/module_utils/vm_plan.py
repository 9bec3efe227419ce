# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is to be done about a VM. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from . import vm_drift
from .errors import MicrovmError
from .vm_changes import Call, Change
from .vm_state import Current, State

Wanted = Literal["present", "running", "paused", "stopped", "restarted", "absent"]
Apply = Literal["none", "live", "restart"]
Step = Literal["record", "stop", "clean", "start", "boot", "resume", "pause", "remove"]


def plan(wanted: Wanted, now: Current, *, asked_anew: bool) -> list[Step]:
    """Return what is to be done. ``asked_anew``: the options differ from those on record."""
    alive = now.pid is not None
    if wanted == "absent":
        steps: list[Step] = ["stop"] if alive else []
        return [*steps, "remove"] if now.record is not None or now.stale or alive else steps
    steps = ["record"] if asked_anew else []
    if wanted == "present":
        return steps
    if wanted == "stopped":
        return [*steps, "stop"] if alive else [*steps, "clean"] if now.stale else steps
    usable = now.state in ("running", "paused", "created")
    if wanted == "restarted" or not usable:
        steps += ["stop"] if alive else ["clean"] if now.stale else []
        steps += ["start", "boot"]
        return [*steps, "pause"] if wanted == "paused" else steps
    if now.state == "created":
        steps.append("boot")
    if wanted == "running" and now.state == "paused":
        steps.append("resume")
    if wanted == "paused" and now.state != "paused":
        steps.append("pause")
    return steps


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done about the differences of a VM that runs: a restart, or calls; and what is left."""

    restart: bool = False
    calls: tuple[Call, ...] = ()
    left: tuple[Change, ...] = ()


def decide(changes: Sequence[Change], *, apply: Apply, wanted: Wanted, state: State) -> Decision:
    """Return what is done about the differences. Raises MicrovmError, before anything is, for one that is refused."""
    if apply == "none" or wanted not in ("running", "paused"):
        return Decision(left=tuple(changes))
    for change in changes:
        if change.how == "refused":
            raise MicrovmError(change.words, option=change.option)
    left = tuple(change for change in changes if change.how == "restart")
    if (left and apply == "restart") or (changes and state == "created"):
        return Decision(restart=True)
    return Decision(calls=tuple(vm_drift.calls(changes)), left=left)
