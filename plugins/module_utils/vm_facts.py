# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is told of a VM."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import events, unit_cgroup, vm_life, vm_user
from .bulk import Outcome
from .errors import MicrovmError
from .names import check_vm_name
from .runner import Runner
from .vm_life import Life
from .vm_state import Current, Vm, current
from .vmm_process import started


def describe(vm: Vm, now: Current) -> dict[str, Any]:
    """Return what is told of a VM that is known."""
    record = now.record or {}
    config = now.info.get("config") or record.get("config") or {}
    version = None
    if now.pid is not None:
        with suppress(MicrovmError):
            version = vm.client().ping()["version"]
    alive = now.pid is not None
    life = None if alive else vm_life.lost(vm_life.read(vm.paths), shut_down=_told_of_its_end(vm))
    return {
        "supervisor": vm.supervisor.kind,
        "user": vm_user.user_name(vm.paths.name) if vm.supervisor.unprivileged else None,
        "enabled": vm.supervisor.enabled(),
        "ended": _ended(vm, life),
        "state": now.state,
        "pid": now.pid,
        "vmm_version": version,
        "api_socket": str(vm.paths.api_socket) if alive else None,
        "vsock_socket": str(vm.paths.vsock_socket) if alive and "vsock" in config else None,
        "serial_socket": str(vm.paths.serial_socket) if alive and config["serial"]["mode"] == "Socket" else None,
        "event_log": str(vm.paths.event_log) if alive else None,
        "pty": _console_file(config, "serial", "Pty") if alive else None,
        "console_pty": _console_file(config, "console", "Pty") if alive else None,
        "serial_log": _console_file(config, "serial", "File"),
        "taps": [net["tap"] for net in config.get("net") or () if "tap" in net],
        "labels": record.get("options", {}).get("labels") or {},
    }


def _ended(vm: Vm, life: Life | None) -> dict[str, str | None] | None:
    if life is None or life.reason is None:
        return None
    gave_up = "it is not started again, since restart_limit is reached" if vm.supervisor.gave_up() else None
    return {"reason": life.reason, "detail": "; ".join(part for part in (life.detail, gave_up) if part) or None}


def _console_file(config: Mapping[str, Any], console: str, mode: str) -> str | None:
    settings = config.get(console) or {}
    return settings.get("file") if settings.get("mode") == mode else None


def gather(item: Mapping[str, Any], *, state_dir: Path, run_dir: Path, runner: Runner) -> Outcome:
    """Return what is told of one VM, changing nothing. Raises MicrovmError where its VMM does not answer."""
    vm = Vm.of(check_vm_name(item["name"]), state_dir=state_dir, run_dir=run_dir, runner=runner)
    now = current(vm)
    if now.state == "absent":
        return Outcome(changed=False, facts={"state": "absent"})
    counters: Mapping[str, Any] = {}
    if now.state in ("running", "paused"):
        with suppress(MicrovmError):
            counters = vm.client().counters()
    described = describe(vm, now)
    died = described["ended"] is not None and described["ended"]["reason"] in (
        "guest_shutdown",
        "crashed",
        "oom_killed",
    )
    facts = {
        **described,
        "vmm_died": now.stale or died,
        "uptime": _uptime(now.pid),
        "config": now.info.get("config") or (now.record or {}).get("config"),
        "counters": dict(counters),
        "memory_actual_size": now.info.get("memory_actual_size"),
        "cgroup": {} if now.pid is None else unit_cgroup.usage(now.pid, f"@{vm.paths.name}.service"),
    }
    return Outcome(changed=False, facts=facts)


def _told_of_its_end(vm: Vm) -> bool:
    """Return whether the VMM has written of its own end to its event log, as one does whose guest has powered off."""
    try:
        return any(event.event == "shutdown" for event in events.read(vm.paths.event_log))
    except (OSError, MicrovmError):
        return False


def _uptime(pid: int | None) -> int | None:
    """Return for how many whole seconds a process has run."""
    ticks = None if pid is None else started(pid)
    if ticks is None:
        return None
    since_boot = float(Path("/proc/uptime").read_text().split()[0])
    return int(since_boot - ticks / os.sysconf("SC_CLK_TCK"))
