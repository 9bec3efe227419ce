# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest has shown itself ready by, kept for as long as it does not boot anew, also where another VMM has it by then."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from . import events
from .errors import MicrovmError
from .files import write_json
from .tail import text_of
from .vm_paths import Paths
from .vmm_process import started

_NAME = "ready.json"


def boot(paths: Paths, pid: int | None) -> list[Any]:
    """Return what tells the guest's boot from any other: the VMM's process, and how often a guest has booted in it."""
    return [pid, None if pid is None else started(pid), events.boots(events.read(paths.event_log))]


def seen(paths: Paths, this_boot: Sequence[Any]) -> list[str]:
    """Return the conditions that have held in a boot."""
    met = _read(paths, this_boot).get("met")
    return list(met) if isinstance(met, list) else []


def listened(paths: Paths, this_boot: Sequence[Any]) -> bool:
    """Return whether somebody has listened from a boot's beginning on for what the guest reports in it, once."""
    return _read(paths, this_boot).get("listened") is True


def _read(paths: Paths, this_boot: Sequence[Any]) -> dict[str, Any]:
    try:
        written = json.loads(text_of(paths.run / _NAME))
        return dict(written) if written["boot"] == list(this_boot) else {}
    except (OSError, MicrovmError, ValueError, KeyError, TypeError):
        return {}


def write(paths: Paths, this_boot: Sequence[Any], met: Sequence[str], *, listened: bool = False) -> None:
    """Keep the conditions that have held in a boot, and whether somebody listens in it."""
    write_json(paths.run / _NAME, {"boot": list(this_boot), "met": list(met), "listened": listened})


def carry(paths: Paths, pid: int | None, met: Sequence[str]) -> None:
    """Keep what a guest has shown elsewhere, which goes on in the VMM ``pid``."""
    if met and pid is not None:
        write(paths, boot(paths, pid), met)
