# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far a VM has come in its life, and how it ended: ``life.json`` in its directory, which only root writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from .files import write_json
from .vm_paths import Paths
from .vmm_process import boot_id

Phase = Literal["starting", "running", "stopping", "ended"]
Reason = Literal["stopped", "guest_shutdown", "crashed", "oom_killed", "start_failed", "host_down"]


@dataclass(frozen=True, slots=True)
class Life:
    """A phase, and what belongs to it.

    ``held``: who started the VMM creates and boots the VM, too. ``grace``: the seconds that a stop leaves the guest.
    ``stopped_by``: what ended it, see vm_stop. ``error``: why it did not start, or was lost while it ran. ``reason``, ``detail``:
    how it ended.
    """

    phase: Phase
    boot_id: str = ""
    held: bool = False
    grace: float | None = None
    stopped_by: str | None = None
    error: str | None = None
    reason: Reason | None = None
    detail: str | None = None

    @property
    def of_this_boot(self) -> bool:
        """Whether the host has not been restarted since."""
        return self.boot_id == boot_id()


def read(paths: Paths) -> Life | None:
    """Return how far a VM has come; None where it was never started."""
    try:
        return Life(**json.loads(paths.life.read_bytes()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def write(paths: Paths, life: Life) -> None:
    """Replace what is known; a VM without a directory has been removed, and nothing is kept of it."""
    if paths.state.is_dir():
        write_json(paths.life, {**asdict(life), "boot_id": boot_id()})


def ended(life: Life | None, result: Mapping[str, str], *, oom_kills: int) -> Life:
    """Return how a unit's VM ended.

    ``result`` is what systemd tells ExecStopPost= (systemd.exec(5), SERVICE_RESULT, EXIT_CODE and EXIT_STATUS);
    ``oom_kills`` how many processes of the unit the kernel has killed for want of memory.
    """
    code, status = result.get("EXIT_CODE", ""), result.get("EXIT_STATUS", "")
    how = {"exited": f"exit status {status}", "killed": f"signal {status}", "dumped": f"signal {status}"}.get(code)
    if oom_kills or result.get("SERVICE_RESULT") == "oom-kill":
        return Life("ended", reason="oom_killed", detail="the unit's memory_max, or the host's memory, was used up")
    if life is not None and life.phase == "stopping":
        by = life.stopped_by or (status.lower() if code == "killed" else None)
        return Life("ended", stopped_by=by, reason="stopped", detail=by)
    if life is None or life.phase != "running":
        error = None if life is None else life.error
        return Life("ended", reason="start_failed", detail=error or how or result.get("SERVICE_RESULT"))
    if life.error:
        return Life("ended", reason="crashed", detail=life.error)
    if (code, status) == ("exited", "0"):
        return Life("ended", reason="guest_shutdown")
    return Life("ended", reason="crashed", detail=how)


def lost(life: Life | None, *, shut_down: bool) -> Life | None:
    """Return how a VM ended that no one saw end; ``shut_down``: the VMM has told of its own end."""
    if life is None or life.phase == "ended":
        return life
    if not life.of_this_boot:
        return Life("ended", reason="host_down")
    if life.phase != "running":
        return Life("ended", reason="start_failed" if life.phase == "starting" else "stopped", detail=life.error)
    return Life("ended", reason="guest_shutdown" if shut_down else "crashed")
