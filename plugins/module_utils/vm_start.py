# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Starting a VM: its TAPs, its VMM, the VM itself and its boot; and undoing a start that fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import landlock, tap, vm_life, vm_moving, vm_prepare, vm_record, vm_stop, vmm_versions
from .errors import MicrovmError
from .vm_config import Spec
from .vm_life import Life
from .vm_state import Vm
from .vmm_api import VmmClient, VmmUnreachable
from .vmm_process import Supervisor

_API_SECONDS = 20.0
_POLL_SECONDS = 0.02


def identities(spec: Spec, *, check_mode: bool) -> dict[str, list[int]]:
    """Return what tells each file from one that takes its name later. Raises MicrovmError for a file that is missing.

    In check mode a file may be one that a run would have made.
    """
    identities = {}
    for option, path in spec.files().items():
        try:
            status = Path(path).stat()
        except FileNotFoundError as error:
            if check_mode:
                continue
            raise MicrovmError(f"'{path}' is not there", option=option) from error
        identities[option] = [status.st_dev, status.st_ino]
    return identities


def start(vm: Vm, spec: Spec, fill: Callable[[VmmClient], None] | None = None) -> None:
    """Make what the VM needs, start its VMM and create the VM. What was made is gone where this fails.

    ``fill`` puts the VM into the VMM by other means, such as from a snapshot.
    """
    made: list[str] = []
    if fill is None:
        vm_moving.require_settled(vm.paths)
    try:
        vm_prepare.require_rules(vm, spec)
        vm_prepare.require_backends(spec.config)
        made = vm_prepare.prepare(vm, spec)
        vm_life.write(vm.paths, Life("starting", held=True))
        vm.supervisor.start(vm_prepare.arguments(vm, spec))
        wait_for_api(vm.paths.api_socket, vm.supervisor)
        if fill is None:
            create(vm, spec)
        else:
            fill(vm.client())
    except BaseException as error:
        _undo_start(vm, made, error)
        if isinstance(error, MicrovmError):
            error.message = f"the VM was not started, and what was made for it is gone again: {error.message}"
        raise


def create(vm: Vm, spec: Spec) -> None:
    """Create the VM in its VMM. Raises MicrovmError."""
    config = vmm_versions.adapted(spec.config, vmm_versions.installed(vm.runner, spec.vmm))
    if config.get("landlock_enable", vm.supervisor.unprivileged) and landlock.available():
        config |= landlock.restriction(spec.config, vm.paths)
    vm.client().create(config)
    _refuse_what_was_dropped(config, vm.client().info()["config"])


def _refuse_what_was_dropped(asked: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    """Raise MicrovmError for a property that the VMM was built without: it drops what it does not know silently."""
    for name in ("tdx", "sev_snp"):
        if asked.get("platform", {}).get(name) and not kept.get("platform", {}).get(name):
            raise MicrovmError("the VMM was built without it", option=f"platform.{name}")
    for name in ("igvm", "host_data"):
        if name in asked["payload"] and name not in kept["payload"]:
            raise MicrovmError("the VMM was built without it", option=f"payload.{name}")


def boot(vm: Vm, spec: Spec, before: Callable[[], None] | None = None) -> None:
    """Call ``before``, boot the VM and wait until it holds its TAPs. It is gone where this fails."""
    try:
        if before is not None:
            before()
        boot_and_wait(vm, spec)
    except BaseException as error:
        words = vm.supervisor.last_words()
        _undo_start(vm, [wanted.name for wanted in spec.taps], error)
        if isinstance(error, MicrovmError):
            error.message = f"the VM did not boot, and what was made for it is gone again: {error.message}; {words}"
        raise
    note_boot(vm, spec)


def boot_and_wait(vm: Vm, spec: Spec) -> None:
    """Boot the VM and wait until it holds its TAPs. Raises MicrovmError."""
    vm.client(timeout=max(30.0, spec.boot_timeout)).act("boot")
    deadline = time.monotonic() + spec.boot_timeout
    for wanted in spec.taps:
        while not tap.has_carrier(wanted.name):
            if vm.supervisor.pid() is None:
                raise MicrovmError(f"the VMM ended right after the boot; {vm.supervisor.last_words()}")
            if time.monotonic() > deadline:
                raise MicrovmError(
                    f"the VMM did not take the TAP {wanted.name} within {spec.boot_timeout:g} seconds",
                    option="nets.tap",
                )
            time.sleep(_POLL_SECONDS)


def note_boot(vm: Vm, spec: Spec) -> None:
    """Put on record what the VM runs with, and from which files."""
    record = vm_record.read(vm.paths) or {}
    booted = {"config": spec.config, "files": identities(spec, check_mode=False)}
    vm_record.write(vm.paths, {**record, "booted": booted})
    vm_life.write(vm.paths, Life("running"))


def _undo_start(vm: Vm, taps: list[str], error: BaseException) -> None:
    vm_stop.stop(vm, grace=0)
    vm_stop.clean(vm)
    vm_life.write(vm.paths, Life("ended", reason="start_failed", detail=str(error)))
    for name in taps:
        tap.remove(vm.runner, name)


def wait_for_api(api_socket: Path, supervisor: Supervisor, *, who: str = "the VMM") -> None:
    """Wait until a VMM answers, which errors call ``who``. Raises MicrovmError where it ends before, or takes too long."""
    deadline = time.monotonic() + _API_SECONDS
    while True:
        try:
            VmmClient(str(api_socket), timeout=2.0).ping()
            return
        except VmmUnreachable as error:
            if supervisor.pid() is None:
                raise MicrovmError(
                    f"{who} ended before its API answered; {supervisor.last_words()}", option="vmm"
                ) from error
            if time.monotonic() > deadline:
                raise MicrovmError(
                    f"the API of {who} did not answer within {_API_SECONDS:g} seconds; {supervisor.last_words()}",
                    option="vmm",
                ) from error
        time.sleep(_POLL_SECONDS)
