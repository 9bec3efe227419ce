# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is to be done about a VM. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .vm_config import Spec
from .vm_state import Current

Wanted = Literal["present", "running", "paused", "stopped", "restarted", "absent"]
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


def restart_reasons(now: Current, spec: Spec, files: Mapping[str, Any]) -> list[str]:
    """Return why a living VM is not what is asked for, by option; nothing where it is, or is not living.

    ``files`` identifies the files that are there now under the names of ``Spec.files``.
    """
    if now.pid is None or now.record is None or not now.record.get("booted"):
        return []
    booted = now.record["booted"]
    names = sorted(booted["config"].keys() | spec.config.keys())
    changed = [name for name in names if booted["config"].get(name) != spec.config.get(name)]
    replaced = [name for name, identity in files.items() if booted["files"].get(name, identity) != identity]
    return [*changed, *(f"{name} was replaced" for name in replaced if name.partition(".")[0] not in changed)]
