# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The half of a migration on the host that a VM leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from . import (
    migration_channel,
    migration_offer,
    ready_record,
    unflushed,
    vm_config,
    vm_lifecycle,
    vm_migration,
    vm_moving,
    vm_record,
    vm_restart,
    vmm_versions,
)
from .bulk import Outcome
from .disk_passes import Source
from .errors import MicrovmError
from .migration_channel import Channel, Connection, Tunnel
from .migration_guard import resumed_if_killed
from .vm_moving import Move
from .vm_state import Current, Vm, current
from .vmm_api import VmmError

_MIGRATING = "currently migrating"
# What is sent in the time that a VMM takes for the rest of it, or nearly.
_FEW_BYTES = 64 << 20
_MOST_PASSES = 5


def offer(vm: Vm, item: Mapping[str, Any], *, check_mode: bool) -> Outcome:
    """Tell what the other host has to know, and make the key with which this one comes to it. Raises MicrovmError."""
    move = vm_moving.read(vm.paths)
    if move is not None and not check_mode:
        _stay(vm, move.runs)  # a run was killed
    now = _movable(vm)
    config = _config(now)
    unflushed.refuse(config, accepted=item.get("accept_unflushed"), what="a migration")
    version = vm.client().ping()["version"]
    if why := vm_migration.refusal(vmm_versions.parse(version), paused=now.state == "paused"):
        raise MicrovmError(why, option="name")
    made = migration_offer.make(vm.paths, now.record or {}, config, version)
    ready = ready_record.seen(vm.paths, ready_record.boot(vm.paths, now.pid))
    made |= {"state": now.state, "ready": ready, "probes": [], "public_key": None}
    if not check_mode:
        made["probes"] = migration_offer.leave_probes(made["shared"])
        made["public_key"] = migration_channel.make_key(vm.paths, vm.runner)
    return Outcome(changed=False, facts={"offer": made, "left": False})


def _config(now: Current) -> dict[str, Any]:
    """Return what the VMM has of a guest, with what is on record where its word is not enough."""
    record, config = now.record or {}, now.info["config"]
    return {**config, "disks": vm_record.attached_disks(record, config), "payload": record["config"]["payload"]}


def _movable(vm: Vm) -> Current:
    now = current(vm)
    if now.record is None:
        raise MicrovmError("no VM of this name is known on the host", option="name")
    if now.state not in ("running", "paused"):
        raise MicrovmError(
            f"the VM is {now.state}: only a guest that runs or is paused can be migrated; one that is stopped is provisioned "
            "on the other host, and its disks are copied there",
            option="name",
        )
    try:
        # Refused in any case: while the VM is on its way already, for that reason.
        vm.client().act("resume" if now.state == "running" else "pause")
    except VmmError as error:
        if _MIGRATING in str(error):
            raise MicrovmError("a migration of the VM is under way; wait until it is over", option="name") from error
    return now


def send(vm: Vm, item: Mapping[str, Any], *, check_mode: bool) -> Outcome:
    """Hand the VM over to the other host, which waits for it. Raises MicrovmError; the guest then runs on here.

    Whether the guest has arrived is to be asked there: that the VMM has ended here may have another reason.
    """
    facts: dict[str, Any] = {"left": True, "copied_bytes": [], "paused_seconds": None}
    if vm_moving.read(vm.paths) is not None and vm.supervisor.pid() is None:
        return Outcome(changed=False, facts=facts)  # in a run that was killed
    now = _movable(vm)
    if check_mode:
        return Outcome(changed=True, facts=facts, actions=("sent the guest",))
    channel = _channel(vm, item)
    timeout = item.get("timeout") or vm_migration.DEFAULT_TIMEOUT
    config = _config(now)
    _require_the_same(vm, now, config, item["offer"])
    running = now.state == "running"
    vm_moving.write(vm.paths, Move("to", item["host"], running))
    disks = migration_offer.own_disks(config, vm.paths)
    sources = [Source(path, bool(disk.get("direct"))) for path, disk in sorted(disks.items())]
    guard = resumed_if_killed(vm.paths.api_socket) if sources and running else nullcontext()
    try:
        with guard, Connection(channel, patience=timeout) as connection:
            copied = _passes(connection, sources) if sources and running else []
            begun = time.monotonic()
            if sources:
                connection.deadline = begun + timeout
                if running:
                    vm.client().act("pause")
                copied.append(connection.send_pass(sources))
            _hand_over(vm, connection, max(1.0, begun + timeout - time.monotonic()))
            connection.finish()
            facts["copied_bytes"] = copied
            if sources and running:
                facts["paused_seconds"] = round(time.monotonic() - begun, 3)
    except BaseException:
        _stay(vm, running)
        raise
    return Outcome(changed=True, facts=facts, actions=("sent the guest",))


def _require_the_same(vm: Vm, now: Current, config: Mapping[str, Any], offered: Mapping[str, Any]) -> None:
    """Raise MicrovmError for a VM that has changed since it was offered: the other host would wait for another one."""
    made = migration_offer.make(vm.paths, now.record or {}, config, offered["vmm_version"])
    for part in ("record", "net", "shared"):
        if made[part] != offered[part]:
            raise MicrovmError("the VM was changed since it was offered; run the migration again", option="offer")


def _passes(connection: Connection, sources: list[Source]) -> list[int]:
    """Send what differs while the guest runs, for as long as each pass leaves much less to the next; return their bytes."""
    sent = [connection.send_pass(sources)]
    while sent[-1] > _FEW_BYTES and len(sent) < _MOST_PASSES and (len(sent) < 2 or sent[-1] < sent[-2] / 2):
        sent.append(connection.send_pass(sources))
    return sent


def _hand_over(vm: Vm, connection: Connection, timeout: float) -> None:
    """Have the VMM send its guest. Raises MicrovmError where it has not."""
    tunnel = Tunnel(connection, vm.paths.migration_socket, lambda path: _let_connect(vm, path))
    left, why = False, ""
    try:
        left, why = vm_migration.send(
            vm, f"unix:{vm.paths.migration_socket}", local=False, timeout=timeout, give_up=connection.cut
        )
    finally:
        if not left:
            connection.cut()
        tunnel.close()
    if not left:
        raise MicrovmError(f"the guest was not handed over: {why}; of the other host, {connection.close()}")


def _channel(vm: Vm, item: Mapping[str, Any]) -> Channel:
    for option in ("host", "host_key", "offer"):
        if not item.get(option):
            raise MicrovmError("is missing", option=option)
    return Channel(vm.paths, item["host"], item.get("user") or "root", item.get("port") or 22, item["host_key"])


def _let_connect(vm: Vm, path: Path) -> None:
    user = vm.user()
    if user is not None:
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


def _stay(vm: Vm, runs: bool) -> None:
    """Have a guest that is still here be as it was."""
    if vm.supervisor.pid() is not None:
        vm_moving.clear(vm.paths)
        if runs and current(vm).state == "paused":
            vm.client().act("resume")


def stay(vm: Vm, item: Mapping[str, Any], *, check_mode: bool) -> Outcome:
    """End a migration that has failed: the guest is here. One that is in neither place is started from its disks.

    Raises MicrovmError, which says so, where the guest was lost.
    """
    move = vm_moving.read(vm.paths)
    if check_mode:
        return Outcome(changed=move is not None, facts={"left": False})
    migration_channel.clear(vm.paths)
    migration_offer.remove_probes((item.get("offer") or {}).get("probes") or [])
    if move is None:
        return Outcome(changed=False, facts={"left": False})
    vm_moving.clear(vm.paths)
    now = current(vm)
    if now.pid is None:
        spec = vm_config.parse((now.record or {})["options"], vm.paths)
        vm_restart.restart_lost(vm, f"the guest left for the host '{move.host}' and did not arrive: it is lost", spec)
    _stay(vm, move.runs)
    return Outcome(changed=True, facts={"left": False}, actions=("kept the guest",))


def leave(vm: Vm, item: Mapping[str, Any], *, check_mode: bool) -> Outcome:
    """Forget a VM that has arrived elsewhere. Its lease, rules and disks are for others to remove.

    Raises MicrovmError for one that is here, and for one that was not sent: that the other host says it has it is not enough.
    """
    if vm.supervisor.pid() is not None:
        raise MicrovmError("the VM runs here; it is removed with ch_vm", option="name")
    if check_mode:
        return Outcome(changed=True, facts={"left": True})
    record = vm_record.read(vm.paths)
    if record is not None and vm_moving.read(vm.paths) is None:
        raise MicrovmError(
            "the VM is stopped here and was not sent anywhere, whatever another host says of it; it is removed with ch_vm",
            option="name",
        )
    migration_channel.clear(vm.paths)
    migration_offer.remove_probes((item.get("offer") or {}).get("probes") or [])
    vm_moving.clear(vm.paths)
    vm_lifecycle.remove(vm, record)
    return Outcome(changed=True, facts={"left": True}, actions=("forgot the VM",))
