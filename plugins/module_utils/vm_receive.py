# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The half of a migration on the host that a VM comes to."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import (
    capacity,
    migration_channel,
    migration_offer,
    migration_trust,
    ready_record,
    vm_arrival,
    vm_config,
    vm_facts,
    vm_lifecycle,
    vm_migration,
    vm_moving,
    vm_record,
    vm_start,
    vm_stop,
    vm_unit,
)
from .bulk import Outcome
from .capacity import Ratios
from .errors import MicrovmError
from .systemd_dropin import COMMAND
from .systemd_unit import SystemdUnit
from .vm_config import Spec
from .vm_moving import Move
from .vm_state import Vm, current
from .vmm_process import wait_for_end

# Within it, the key is let in and used once; it is dead afterwards, whatever became of the run.
_KEY_SECONDS = 3600


def make_ready(vm: Vm, item: Mapping[str, Any], *, check_mode: bool) -> Outcome:
    """Start a VMM that waits for the VM which another host offers. Raises MicrovmError; nothing of it is left then."""
    offered = item.get("offer")
    if not offered:
        raise MicrovmError("is missing: what the other host has returned for state=offered", option="offer")
    paths = vm.paths
    facts: dict[str, Any] = {"authorized_key": None, "arrived": False}
    if vm_moving.read(paths) is None and vm_record.read(paths) is not None:
        raise MicrovmError("a VM of this name is on this host already", option="name")
    options = migration_trust.options(offered, item)
    spec = migration_trust.spec(options, offered, paths, item.get("directories") or ())
    if not isinstance(vm.supervisor, SystemdUnit):
        vm_unit.refuse_without_unit(options)
    migration_offer.check(offered, paths, vm.runner, spec.vmm)
    ratios, run_dir = Ratios(**(item.get("capacity") or {})), paths.run.parent
    with capacity.admitted(
        [options], ratios, state_dir=paths.state_dir, run_dir=run_dir, check_mode=check_mode
    ) as refused:
        for refusal in refused.values():
            raise refusal
        if not check_mode:
            command = f"{item.get('command') or COMMAND} {shlex.join([*paths.arguments(), 'receive', paths.name])}"
            until = time.localtime(time.time() + _KEY_SECONDS)
            facts["authorized_key"] = migration_channel.authorized_key(offered["public_key"], command, until=until)
            _wait(vm, spec, options, offered, item.get("host") or "another one")
    return Outcome(changed=True, facts=facts, actions=("made ready for the guest",))


def _wait(vm: Vm, spec: Spec, options: Mapping[str, Any], offered: Mapping[str, Any], host: str) -> None:
    """Make what the VM needs, and have a VMM wait for it. Raises MicrovmError; nothing of it is left then."""
    paths = vm.paths
    discard(vm)
    paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    for disk in offered["copied"]:
        if os.path.lexists(disk["path"]):
            raise MicrovmError(
                f"'{disk['path']}' is on this host, and no VM; remove it with ch_disks, or move it away", option="disks"
            )
    vm_moving.write(paths, Move("from", host, offered["state"] == "running", tuple(offered["backing"])))
    try:
        vm_record.write(paths, {"options": options, "config": spec.config})
        for disk in offered["copied"]:
            # They come later; who may write to them is settled now.
            with open(disk["path"], "xb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.truncate(disk["size"])
        vm_unit.apply(vm, "unit", spec, options)
        vm_start.start(
            vm,
            spec,
            lambda client: vm_migration.begin_receiving(
                Path(client.socket_path), paths.migration_socket, lambda: vm.supervisor.pid() is not None
            ),
        )
    except BaseException:
        discard(vm)
        raise


def arrive(vm: Vm, item: Mapping[str, Any], *, check_mode: bool) -> Outcome:
    """Take the VM that has come for this host's own. Raises MicrovmError where it has not come."""
    if check_mode:
        return Outcome(changed=True, facts={"arrived": True})
    move = vm_moving.read(vm.paths)
    record = vm_record.read(vm.paths)
    if record is None or not vm_migration.arrived(vm.paths.api_socket, lambda: vm.supervisor.pid() is not None):
        raise MicrovmError(
            f"the guest has not arrived; the VMM that waited: {vm.supervisor.last_words()}", option="name"
        )
    spec = vm_config.parse(record["options"], vm.paths)
    if move is not None:
        vm_arrival.check(vm.client().info()["config"], record["config"])
        offered = item.get("offer") or {}
        if move.runs and current(vm).state == "paused":
            vm.client().act("resume")
        vm_moving.clear(vm.paths)
        vm.paths.migration_socket.unlink(missing_ok=True)
        vm_start.note_boot(vm, spec)
        ready_record.carry(vm.paths, vm.supervisor.pid(), offered.get("ready") or [])
        vm_unit.apply(vm, "enable", spec, record["options"])
    now = current(vm)
    return Outcome(
        changed=move is not None,
        facts={**vm_facts.describe(vm, now), "arrived": True},
        actions=("received the guest",) if move is not None else (),
    )


def abandon(vm: Vm, item: Mapping[str, Any], *, check_mode: bool) -> Outcome:
    """End the waiting for a VM that does not come, and remove what was made for it. A VM that is at home here stays."""
    waiting = vm_moving.read(vm.paths) is not None
    if waiting and not check_mode:
        discard(vm)
    return Outcome(
        changed=waiting, facts={"arrived": False}, actions=("removed what was made for the guest",) if waiting else ()
    )


def discard(vm: Vm) -> None:
    """Remove what has been made for a VM that is on its way here; nothing where none is."""
    move, record = vm_moving.read(vm.paths), vm_record.read(vm.paths)
    if move is None or move.way != "from":
        return
    # A VMM that waits heeds nothing else. Its unit does not start another: see vm_moving.
    vm.supervisor.signal(signal.SIGKILL)
    wait_for_end(vm.supervisor, vm_stop.STOP_SECONDS)
    vm_stop.stop(vm, grace=0)
    for disk in (record or {}).get("config", {}).get("disks") or ():
        if Path(disk["path"]).parent == vm.paths.state:
            Path(disk["path"]).unlink(missing_ok=True)
    vm_moving.clear(vm.paths)
    vm_lifecycle.remove(vm, record)
