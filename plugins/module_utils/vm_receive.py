# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The half of a migration on the host that a VM comes to."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import (
    migration_channel,
    migration_offer,
    ready_record,
    tap,
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
from .errors import MicrovmError
from .systemd_dropin import COMMAND
from .vm_moving import Move
from .vm_state import Vm, current
from .vmm_process import wait_for_end


def make_ready(vm: Vm, item: Mapping[str, Any], *, check_mode: bool) -> Outcome:
    """Start a VMM that waits for the VM which another host offers. Raises MicrovmError; nothing of it is left then."""
    offered = item.get("offer")
    if not offered:
        raise MicrovmError("is missing: what the other host has returned for state=offered", option="offer")
    paths = vm.paths
    facts: dict[str, Any] = {"authorized_key": None, "arrived": False}
    if vm_moving.read(paths) is None and vm_record.read(paths) is not None:
        raise MicrovmError("a VM of this name is on this host already", option="name")
    spec = vm_config.parse(offered["record"]["options"], paths)
    spec = replace(spec, taps=tap.with_macs(spec.taps, offered))
    migration_offer.check(offered, paths, vm.runner, spec.vmm)
    if check_mode:
        return Outcome(changed=True, facts=facts, actions=("made ready for the guest",))
    discard(vm)
    paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    vm_moving.write(paths, Move("from", item.get("host") or "another one"))
    try:
        vm_record.write(paths, offered["record"])
        for disk in offered["copied"]:
            # They come later; who may write to them is settled now.
            with open(disk["path"], "xb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.truncate(disk["size"])
        vm_unit.apply(vm, "unit", spec, offered["record"]["options"])
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
    command = f"{item.get('command') or COMMAND} {shlex.join([*paths.arguments(), 'receive', paths.name])}"
    facts["authorized_key"] = migration_channel.authorized_key(offered["public_key"], command)
    return Outcome(changed=True, facts=facts, actions=("made ready for the guest",))


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
        offered = item.get("offer") or {}
        if offered.get("state", "running") == "running" and current(vm).state == "paused":
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
