# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Starting a VM whose guest is lost, because its VMM died in the middle of something."""

from __future__ import annotations

from typing import NoReturn

from . import vm_start, vm_stop
from .errors import MicrovmError
from .vm_config import Spec
from .vm_state import Vm, current


def restart_lost(vm: Vm, lost: str, spec: Spec) -> NoReturn:
    """Start the VM from its disks, unless its unit already has; raise MicrovmError: ``lost``, and what was done."""
    try:
        vm.supervisor.settle()
        if current(vm).state != "running":
            vm_stop.stop(vm, grace=0)
            vm_stop.clean(vm)
            vm_start.start(vm, spec)
            vm_start.boot(vm, spec)
    except MicrovmError as error:
        raise MicrovmError(f"{lost}; it could not be started again from its disks: {error.message}") from error
    raise MicrovmError(f"{lost}; it was started again from its disks")
