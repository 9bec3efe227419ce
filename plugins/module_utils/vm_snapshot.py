# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Making snapshots of a VM, and removing them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import (
    disks_record,
    ready_record,
    snapshot_disks,
    snapshot_memory,
    snapshot_store,
    unflushed,
    vm_config,
    vm_record,
    vm_restart,
    vmm_versions,
)
from .bulk import Outcome
from .errors import MicrovmError
from .files import locked_directory
from .names import check_vm_name
from .runner import Runner
from .snapshot_disks import Disk
from .snapshot_store import Snapshot
from .vm_schema import spelled
from .vm_state import Current, Vm, current
from .vmm_api import VmmError, VmmUnreachable
from .vmm_process import wait_for_end

_INTENT = "begun.json"
# A VMM writes the memory in one call. A disk that is slower than this, in bytes a second, is taken for one that hangs.
_SLOWEST_WRITE = 20 << 20
_END_SECONDS = 2.0


def ensure(
    item: Mapping[str, Any], *, state_dir: Path, run_dir: Path, runner: Runner, check_mode: bool = False
) -> Outcome:
    """Make or remove one VM's snapshots as its options say. Raises MicrovmError; nothing half-made is left then."""
    name = check_vm_name(item["name"])
    vm = Vm.of(name, state_dir=state_dir, run_dir=run_dir, runner=runner)
    if item.get("state") == "absent" and item.get("snapshot") is None and item.get("keep") is None:
        raise MicrovmError("is missing: say which snapshot goes, or with keep how many stay", option="snapshot")
    with locked_directory(vm.paths.state, make=False):
        actions = clear_unfinished(vm, state_dir, check_mode=check_mode)
        before = snapshot_store.listed(state_dir, name)
        after = list(before)
        facts: dict[str, Any] = {"snapshot": None}
        if item.get("state") != "absent":
            asked = snapshot_store.check_name(item.get("snapshot") or _by_time())
            found = next((snapshot for snapshot in before if snapshot.name == asked), None)
            if found is None:
                actions.append(f"made {asked}")
                memory, now = _planned(vm, item, state_dir)
                if not check_mode:
                    found, paused = create(vm, now, state_dir=state_dir, name=asked, memory=memory)
                    after.append(found)
                    facts["paused_seconds"] = round(paused, 3)
            facts["snapshot"] = None if found is None else found.facts()
        elif item.get("snapshot") is not None:
            asked = snapshot_store.check_name(item["snapshot"])
            after = [snapshot for snapshot in before if snapshot.name != asked]
        if item.get("keep") is not None:
            after = _kept(after, item["keep"])
        for snapshot in before:
            if snapshot not in after:
                actions.append(f"removed {snapshot.name}")
                if not check_mode:
                    snapshot_store.remove(snapshot.path)
    return Outcome(
        changed=bool(actions),
        facts={**facts, "snapshots": [snapshot.facts() for snapshot in after]},
        before={"snapshots": [snapshot.name for snapshot in before]},
        after={"snapshots": [snapshot.name for snapshot in after]},
        actions=tuple(actions),
    )


def gather(item: Mapping[str, Any], *, state_dir: Path) -> Outcome:
    """Return a VM's snapshots, changing nothing."""
    name = check_vm_name(item["name"])
    found = snapshot_store.listed(state_dir, name)
    unfinished = [str(path) for path in snapshot_store.unfinished(state_dir, name)]
    return Outcome(
        changed=False, facts={"snapshots": [snapshot.facts() for snapshot in found], "unfinished": unfinished}
    )


def _by_time() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def _kept(snapshots: list[Snapshot], keep: int) -> list[Snapshot]:
    if keep < 0:
        raise MicrovmError(f"{keep} snapshots cannot stay; give 0 or more", option="keep")
    return snapshots[len(snapshots) - min(keep, len(snapshots)) :]


def _planned(vm: Vm, item: Mapping[str, Any], state_dir: Path) -> tuple[bool, Current]:
    """Return whether the memory is to be in the snapshot, and what is there. Raises MicrovmError for what cannot be."""
    now = current(vm)
    if now.record is None:
        raise MicrovmError("no VM of this name is known on the host", option="name", vm=vm.paths.name)
    if now.state not in ("running", "paused", "stopped"):
        raise MicrovmError(
            f"the VM is {now.state}: a snapshot is of one that runs, is paused or stopped", option="state"
        )
    alive = now.state != "stopped"
    memory = alive if item.get("memory") is None else bool(item["memory"])
    if memory and not alive:
        raise MicrovmError("a VM that is stopped has no memory; leave it out, or start the VM", option="memory")
    config = _config(now)
    if memory:
        unflushed.refuse(
            config,
            accepted=item.get("accept_unflushed"),
            what="a restore of the memory, which memory=false leaves out,",
        )
    disks = snapshot_disks.of(config, vm.paths.state)
    needed = snapshot_disks.allocated(disk.path for disk in disks if disk.copied)
    if memory:
        needed += config["memory"]["size"] + (config["memory"].get("hotplug_size") or 0)
    snapshot_disks.check_space(snapshot_store.directory(state_dir, vm.paths.name), needed, what="the snapshot")
    return memory, now


def _config(now: Current) -> Mapping[str, Any]:
    record = now.record or {}
    config: Mapping[str, Any] = now.info.get("config") or record["config"]
    return {**config, "disks": vm_record.attached_disks(record, config)}


def clear_unfinished(vm: Vm, state_dir: Path, *, check_mode: bool = False) -> list[str]:
    """Remove what runs that were killed have left, and let the guest run on that one of them had paused."""
    actions = []
    for path in snapshot_store.unfinished(state_dir, vm.paths.name):
        intent = path / _INTENT
        try:
            paused_by_us = json.loads(intent.read_bytes())["was"] == "running"
        except (OSError, ValueError, KeyError):
            paused_by_us = False
        if paused_by_us and current(vm).state == "paused":
            actions.append("resumed the guest that a run which did not end had paused")
            if not check_mode:
                vm.client().act("resume")
        actions.append(f"removed {path.name}, which was not finished")
        if not check_mode:
            snapshot_memory.clear(vm)
            snapshot_store.remove(path)
    return actions


def create(vm: Vm, now: Current, *, state_dir: Path, name: str, memory: bool) -> tuple[Snapshot, float]:
    """Make a snapshot; return it, and for how many seconds the guest stood still.

    The guest runs on whatever happens. Where its VMM has died meanwhile, the guest is lost: it is started anew from its
    disks, and MicrovmError says so.
    """
    config = _config(now)
    disks = snapshot_disks.of(config, vm.paths.state)
    version = vm.client().ping()["version"] if memory else None
    path = snapshot_store.begin(state_dir, vm.paths.name, name)
    try:
        (path / _INTENT).write_text(json.dumps({"was": now.state}))
        begun = time.monotonic()
        with _standing_still(vm, now):
            if memory:
                with snapshot_memory.written(vm, path / snapshot_store.MEMORY) as directory:
                    timeout = 60 + config["memory"]["size"] / _SLOWEST_WRITE
                    vm.client(timeout=timeout).snapshot(f"file://{directory}")
            _copy(vm.runner, disks, path)
        paused = time.monotonic() - begun if now.state == "running" else 0.0
        (path / _INTENT).unlink()
        manifest = {
            "vm": vm.paths.name,
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
            "vmm_version": version,
            "record": now.record,
            "config": config,
            "ready": ready_record.seen(vm.paths, ready_record.boot(vm.paths, now.pid)),
            "root": disks_record.read(vm.paths.state).get("root") or {},
            "disks": {
                disk.id: {
                    "path": str(disk.path),
                    "identity": None if disk.copied else snapshot_disks.identity(disk.path),
                }
                for disk in disks
            },
        }
        return snapshot_store.finish(path, manifest), paused
    except BaseException:
        snapshot_store.remove(path)
        raise


def _copy(runner: Runner, disks: list[Disk], path: Path) -> None:
    (path / snapshot_disks.DIRECTORY).mkdir(mode=0o700)
    for disk in disks:
        if disk.copied:
            snapshot_disks.copy(runner, disk.path, path / snapshot_disks.DIRECTORY / disk.id)


@contextmanager
def _standing_still(vm: Vm, now: Current) -> Iterator[None]:
    """Have the guest stand still for the block, and run on after it as it did before."""
    if now.pid is None:
        yield
        return
    if now.state == "running":
        vm.client().act("pause")
    try:
        yield
    except BaseException as error:
        _go_on(vm, now, because=error)
        raise
    _go_on(vm, now)


def _go_on(vm: Vm, now: Current, because: BaseException | None = None) -> None:
    try:
        if now.state == "running":
            vm.client().act("resume")
        else:
            vm.client().ping()
    except (VmmError, VmmUnreachable) as error:
        if not _is_gone(vm, now):
            raise MicrovmError(f"the guest could not be resumed after the snapshot: {error.message}") from error
        cause = because or error
        lost = (
            f"the VMM died while the snapshot was made, and with it the guest ({cause}; {vm.supervisor.last_words()})"
        )
        vm_restart.restart_lost(vm, lost, vm_config.parse((now.record or {})["options"], vm.paths))


def _is_gone(vm: Vm, now: Current) -> bool:
    """Return whether the VMM has ended, or ends at once. Its unit may have started another by now."""
    return wait_for_end(vm.supervisor, _END_SECONDS) or vm.supervisor.pid() != now.pid


def check_version(snapshot: Snapshot, runner: Runner, vmm: str) -> None:
    """Raise MicrovmError where the VMM that is installed is not the one that wrote the snapshot's memory."""
    written = vmm_versions.parse(snapshot.manifest["vmm_version"])
    installed = vmm_versions.installed(runner, vmm)
    if installed != written:
        raise MicrovmError(
            f"the memory in the snapshot '{snapshot.name}' was written by Cloud Hypervisor {spelled(written)}, and "
            f"'{vmm}' is {spelled(installed)}: a VMM reads only what its own version wrote. Use that version, or "
            "memory=false to boot from the snapshot's disks",
            option="snapshot",
        )
