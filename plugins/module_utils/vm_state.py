# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is there of one VM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import systemd_unit, vm_record, vm_user
from .errors import MicrovmError
from .runner import HostRunner, Runner
from .systemd_unit import DEFAULT_UNIT, SystemdUnit
from .vm_paths import Paths
from .vm_user import User
from .vmm_api import VmmClient, VmmError, VmmUnreachable
from .vmm_process import DetachedProcess, Supervisor, wait_for_end

State = Literal["absent", "stopped", "created", "running", "paused"]
_STATES: Mapping[str, State] = {"Created": "created", "Running": "running", "Paused": "paused", "Shutdown": "stopped"}


@dataclass(frozen=True, slots=True)
class Current:
    """What is there: the record of what was asked, the VMM's process, and what it says of its VM."""

    record: Mapping[str, Any] | None
    pid: int | None
    state: State
    info: Mapping[str, Any]
    # Files of a VMM that is gone.
    stale: bool


@dataclass(frozen=True, slots=True)
class Vm:
    """The tools for one VM."""

    paths: Paths
    supervisor: Supervisor
    runner: Runner

    @classmethod
    def of(
        cls,
        name: str,
        *,
        state_dir: Path,
        run_dir: Path,
        runner: Runner | None = None,
        supervisor: str | None = None,
        unit: str | None = None,
    ) -> Vm:
        """Return the tools for the VM ``name``.

        ``supervisor`` is ``systemd``, ``process`` or ``auto``, ``unit`` the name of the template unit; the default of both
        is what is on record. A VMM that runs stays where it is. Raises MicrovmError for a unit that is not installed.
        """
        paths = Paths.of(name, state_dir=state_dir, run_dir=run_dir)
        runner = runner or HostRunner()
        recorded = (vm_record.read(paths) or {}).get("options", {})
        wanted = supervisor or recorded.get("supervisor") or "auto"
        template = unit or recorded.get("unit") or DEFAULT_UNIT
        return cls(paths, _supervisor(paths, runner, wanted, template), runner)

    def user(self) -> User | None:
        """Return the user that the VMM runs as; None where that is root. Raises MicrovmError where the name is another's."""
        return vm_user.find(self.paths.name) if self.supervisor.unprivileged else None

    def client(self, timeout: float = 10.0) -> VmmClient:
        """Return a client of the VMM's API."""
        return VmmClient(str(self.paths.api_socket), timeout=timeout)


def _supervisor(paths: Paths, runner: Runner, wanted: str, template: str) -> Supervisor:
    process = DetachedProcess(paths.run, api_socket=paths.api_socket, log=paths.vmm_log)
    there = systemd_unit.installed(template)
    if wanted == "systemd" and not there:
        raise MicrovmError(
            f"systemd does not run this host, or has no unit '{template}@.service'; have the role "
            "microvm.cloud_hypervisor.host install it, or choose auto or process",
            option="supervisor",
        )
    if not there or process.pid() is not None:
        return process
    unit = SystemdUnit(paths, template=template, runner=runner)
    return process if wanted == "process" and unit.pid() is None else unit


def current(vm: Vm) -> Current:
    """Read what is there, changing nothing."""
    record = vm_record.read(vm.paths)
    pid = vm.supervisor.pid()
    info: Mapping[str, Any] = {}
    state: State = "absent" if record is None else "stopped"
    if pid is not None:
        try:
            info = vm.client().info()
            known = _STATES.get(info["state"])
            if known is None:
                raise MicrovmError(
                    f"the VMM says that the VM is {info['state']!r}, with which nothing can be done here"
                )
            state = known
        except VmmError:
            state = "stopped"  # the VMM lives and has no VM
        except VmmUnreachable:
            # It may just have ended.
            if not wait_for_end(vm.supervisor, 1.0):
                raise
            pid = None
    return Current(record, pid, state, info, stale=pid is None and vm.paths.run.exists())
