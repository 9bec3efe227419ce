# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stopping a VM: what asks first, and what is left to do where that does not help."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from . import vm_life
from .errors import MicrovmError
from .vm_life import Life
from .vm_state import Vm
from .vmm_api import VmmClient, VmmError, VmmUnreachable
from .vmm_process import wait_for_end

STOP_SECONDS = 5.0


def stop(vm: Vm, *, grace: float) -> str | None:
    """Stop the VM and its VMM; return what did it, None where nothing ran.

    The guest is asked with the power button and has ``grace`` seconds. Then the VM is shut down, then the VMM, and the
    process gets TERM and KILL, each where what came before did not end it within 5 seconds.
    """
    stopped_by = vm.supervisor.stop(grace, partial(ask, vm))
    if stopped_by is not None:
        vm_life.write(vm.paths, Life("ended", stopped_by=stopped_by, reason="stopped", detail=stopped_by))
    return stopped_by


def ask(vm: Vm, grace: float) -> str | None:
    """Do as ``stop`` says, where it is the VMM's process that is to be ended."""
    if vm.supervisor.pid() is None:
        return None
    client = vm.client(timeout=STOP_SECONDS)
    if grace > 0 and _press_power_button(client) and wait_for_end(vm.supervisor, grace):
        return "power_button"
    shut_down = _accepted(lambda: client.act("shutdown"))
    if _accepted(client.vmm_shutdown) and wait_for_end(vm.supervisor, STOP_SECONDS):
        return "vm_shutdown" if shut_down else "vmm_shutdown"
    for number in (signal.SIGTERM, signal.SIGKILL):
        vm.supervisor.signal(number)
        if wait_for_end(vm.supervisor, STOP_SECONDS):
            return "term" if number == signal.SIGTERM else "kill"
    raise MicrovmError(f"the VMM's process {vm.supervisor.pid()} outlives even SIGKILL; look at what the kernel says")


def _press_power_button(client: VmmClient) -> bool:
    with suppress(MicrovmError):
        if client.info()["state"] == "Paused":
            client.act("resume")
        client.act("power-button")
        return True
    return False


def _accepted(call: Callable[[], None]) -> bool:
    with suppress(VmmError, VmmUnreachable):
        call()
        return True
    return False


def clean(vm: Vm) -> None:
    """Remove what a VMM that ended has left in its run directory."""
    vm.supervisor.forget()
    shutil.rmtree(vm.paths.run, ignore_errors=True)
