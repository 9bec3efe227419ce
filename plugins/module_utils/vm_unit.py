# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a VM's options to its unit: what the drop-in says, and whether the VM comes back with the host."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from . import limits, systemd_dropin, vm_access, vm_prepare, vm_user
from .errors import MicrovmError
from .systemd_dropin import Restart, Unit
from .systemd_unit import SystemdUnit
from .vm_config import DEFAULT_GRACE, Spec
from .vm_state import Vm

UnitStep = Literal["unit", "enable", "disable"]
# What only a unit can do, and what asks for nothing.
_NEED_A_UNIT = {"limits": None, "restart": "no"}


def refuse_without_unit(options: Mapping[str, Any]) -> None:
    """Raise MicrovmError for options that nothing would follow where no unit runs the VMM."""
    for option, nothing in _NEED_A_UNIT.items():
        if options.get(option) not in (None, nothing):
            raise MicrovmError(
                "needs a unit, and this VM's VMM is a process of its own; have the role microvm.cloud_hypervisor.host "
                "install the unit on a host that systemd runs, or leave this out",
                option=option,
            )


def steps(vm: Vm, spec: Spec | None, options: Mapping[str, Any], wanted: str) -> list[UnitStep]:
    """Return what is to be done about the unit of a VM that is brought to the state ``wanted``."""
    if not isinstance(vm.supervisor, SystemdUnit):
        refuse_without_unit(options)
        return []
    result: list[UnitStep] = []
    if spec is not None and vm.supervisor.dropin() != text(vm, spec, options):
        result.append("unit")
    if wanted in ("running", "restarted"):
        result += [] if vm.supervisor.enabled() else ["enable"]
    elif wanted in ("stopped", "paused"):
        result += ["disable"] if vm.supervisor.enabled() else []
    return result


def apply(vm: Vm, step: UnitStep, spec: Spec | None, options: Mapping[str, Any]) -> None:
    """Do one of the steps."""
    if isinstance(vm.supervisor, SystemdUnit):
        if step != "unit":
            vm.supervisor.enable(step == "enable")
        elif spec is not None:
            # systemd looks the user up before it runs any of the unit's commands, those of root as well.
            vm_user.ensure(vm.paths.name, vm.runner)
            vm.supervisor.write_dropin(text(vm, spec, options))


def remove(vm: Vm, config: Mapping[str, Any]) -> None:
    """Remove what a VM's unit has beside the template, and the VM's user; the files of a VmConfig are root's again."""
    if isinstance(vm.supervisor, SystemdUnit):
        vm.supervisor.remove()
    user = vm_user.find(vm.paths.name)
    if user is not None:
        vm_access.take_back(config, user)
        os.chown(vm.paths.state, 0, 0)
        vm_user.remove(vm.paths.name, vm.runner)


def text(vm: Vm, spec: Spec, options: Mapping[str, Any]) -> str:
    """Return the drop-in. Raises MicrovmError, naming the option."""
    writable = [use.path for use in vm_access.files(spec.config) if use.writes]
    outside = [str(path) for path in writable if path.parent != vm.paths.state]
    limit = options.get("restart_limit") or {}
    default = Restart()
    grace = options.get("grace")
    return systemd_dropin.render(
        Unit(
            paths=vm.paths,
            argv=vm_prepare.arguments(vm, spec),
            user=vm_user.user_name(vm.paths.name),
            groups=["kvm"] if vm_user.group_id("kvm") is not None else [],
            files=outside,
            devices=[str(path) for path in writable if _is_block_device(path)],
            grace=DEFAULT_GRACE if grace is None else grace,
            boot_timeout=spec.boot_timeout,
            restart=Restart(
                options.get("restart") or default.policy,
                limit.get("burst") or default.burst,
                limit.get("seconds") or default.seconds,
            ),
            limits=limits.settings(options.get("limits") or {}, spec.config, directory=str(vm.paths.state)),
        )
    )


def _is_block_device(path: Path) -> bool:
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except FileNotFoundError:
        return False
