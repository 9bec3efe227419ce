# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Going back to a snapshot, and making the disks of another VM of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import (
    disks_record,
    ready_record,
    snapshot_disks,
    snapshot_memory,
    snapshot_store,
    tap,
    vm_config,
    vm_moving,
    vm_record,
    vm_restart,
    vm_snapshot,
    vm_start,
    vm_stop,
)
from .bulk import Outcome
from .errors import MicrovmError
from .files import locked_directory, staged
from .names import check_vm_name
from .runner import Runner
from .snapshot_store import Snapshot
from .vm_config import Spec
from .vm_state import Vm, current
from .vmm_api import VmmClient
from .vmm_process import wait_for_end

_SLOWEST_READ = 20 << 20


def restore(
    item: Mapping[str, Any], *, state_dir: Path, run_dir: Path, runner: Runner, check_mode: bool = False
) -> Outcome:
    """Bring one VM back to a snapshot: its options, its disks and, where they are in it, its memory and devices.

    Until all disks are copied nothing is touched. Raises MicrovmError.
    """
    vm = Vm.of(check_vm_name(item["name"]), state_dir=state_dir, run_dir=run_dir, runner=runner)
    with locked_directory(vm.paths.state, make=not check_mode, mode=0o700):
        vm_moving.require_settled(vm.paths)
        cleared = vm_snapshot.clear_unfinished(vm, state_dir, check_mode=check_mode)
        snapshot = _whole(item, state_dir, vm.paths.name)
        spec = vm_config.parse(snapshot.manifest["record"]["options"], vm.paths)
        memory = snapshot.has_memory and item.get("memory") is not False
        if item.get("memory") and not snapshot.has_memory:
            raise MicrovmError(
                f"the snapshot '{snapshot.name}' is of the disks alone; leave memory out", option="memory"
            )
        if memory:
            vm_snapshot.check_version(snapshot, runner, spec.vmm)
        copies = _copies(snapshot)
        snapshot_disks.check_space(vm.paths.state, snapshot_disks.allocated(copies), what="the copy of its disks")
        before = current(vm)
        if not check_mode:
            with ExitStack() as names:
                for source, target in copies.items():
                    temporary = names.enter_context(staged(target))
                    snapshot_disks.copy(runner, source, temporary)
                # The disks take their names when this block ends: nothing may have the old ones open by then.
                vm_stop.stop(vm, grace=0)
                vm_stop.clean(vm)
            vm_record.write(vm.paths, snapshot.manifest["record"])
            _run(vm, spec, snapshot, memory=memory)
    return Outcome(
        changed=True,
        facts={
            "state": "running",
            "snapshot": snapshot.facts(),
            "snapshots": [known.facts() for known in snapshot_store.listed(state_dir, vm.paths.name)],
        },
        before={"state": before.state},
        after={"state": "running", "snapshot": snapshot.name},
        actions=(*cleared, f"restored {snapshot.name}{'' if memory else ', its disks alone'}"),
    )


def _whole(item: Mapping[str, Any], state_dir: Path, vm: str) -> Snapshot:
    if item.get("snapshot") is None:
        raise MicrovmError("is missing: say which snapshot", option="snapshot")
    snapshot = snapshot_store.get(state_dir, vm, item["snapshot"])
    snapshot.verify(digests=item.get("verify") is not False)
    for name, disk in snapshot.manifest["disks"].items():
        if disk["identity"] is not None:
            path = Path(disk["path"])
            found = snapshot_disks.identity(path) if path.exists() else None
            if found != disk["identity"]:
                raise MicrovmError(
                    f"the disk '{name}', '{path}', is not in the snapshot and is not what it was then; put it back",
                    option="snapshot",
                )
    return snapshot


def _copies(snapshot: Snapshot) -> dict[Path, Path]:
    """Return where each disk in a snapshot belongs, by where it lies."""
    below = snapshot.path / snapshot_disks.DIRECTORY
    return {
        below / name: Path(disk["path"])
        for name, disk in snapshot.manifest["disks"].items()
        if disk["identity"] is None
    }


def _run(vm: Vm, spec: Spec, snapshot: Snapshot, *, memory: bool) -> None:
    if not memory:
        vm_start.start(vm, spec)
        vm_start.boot(vm, spec)
        return

    def fill(_client: VmmClient) -> None:
        timeout = 60 + snapshot.facts()["size"] / _SLOWEST_READ
        with snapshot_memory.readable(vm, snapshot.path / snapshot_store.MEMORY) as directory:
            vm.client(timeout=timeout).restore(f"file://{directory}")
        vm.client().act("resume")

    try:
        vm_start.start(vm, replace(spec, taps=tap.with_macs(spec.taps, snapshot.manifest["config"])), fill)
        if wait_for_end(vm.supervisor, 0.2):
            raise MicrovmError("the VMM ended right after it resumed the guest")
    except MicrovmError as error:
        vm_restart.restart_lost(vm, f"the guest could not be restored ({error.message})", spec)
    vm_start.note_boot(vm, spec)
    ready_record.carry(vm.paths, vm.supervisor.pid(), snapshot.manifest.get("ready") or [])


def clone(
    item: Mapping[str, Any], *, state_dir: Path, run_dir: Path, runner: Runner, check_mode: bool = False
) -> Outcome:
    """Make the root disk and the data disks of a new VM from those in another one's snapshot.

    What makes the new VM another one, such as its lease and its CIDATA with an instance id of its own, comes with its
    provisioning. Raises MicrovmError where the new VM has a root disk that is no such copy.
    """
    name = check_vm_name(item["name"])
    vm = Vm.of(name, state_dir=state_dir, run_dir=run_dir, runner=runner)
    source = item.get("source") or {}
    if source.get("name") is None or source.get("snapshot") is None:
        raise MicrovmError("is missing: name the VM and its snapshot", option="source")
    origin = f"{check_vm_name(source['name'])}/{source['snapshot']}"
    with locked_directory(vm.paths.state, make=not check_mode, mode=0o700):
        if disks_record.read(vm.paths.state).get("root", {}).get("cloned_from") == origin:
            return Outcome(changed=False, facts={"state": "cloned", "snapshot": None, "snapshots": []})
        for there in ("root.raw", "root.qcow2"):
            if (vm.paths.state / there).exists():
                raise MicrovmError(
                    f"'{vm.paths.state / there}' is there and is no copy from {origin}; a clone is a new VM",
                    option="name",
                )
        snapshot = _whole({"snapshot": source["snapshot"], "verify": item.get("verify")}, state_dir, source["name"])
        copies = _cloned(snapshot, vm.paths.state)
        snapshot_disks.check_space(vm.paths.state, snapshot_disks.allocated(copies), what="the clone")
        if not check_mode:
            with ExitStack() as names:
                for disk, target in copies.items():
                    temporary = names.enter_context(staged(target, replace=False))
                    snapshot_disks.copy(runner, disk, temporary)
                made = {**snapshot.manifest["root"], "cloned_from": origin}
                # ch_disks takes disks that are there for its own, and knows the root disk's kind by its record.
                disks_record.write(vm.paths.state, {"root": made})
    return Outcome(
        changed=True,
        facts={"state": "cloned", "snapshot": snapshot.facts(), "snapshots": []},
        before={"disks": []},
        after={"disks": sorted(path.name for path in copies.values())},
        actions=(f"cloned the disks from {origin}",),
    )


def _cloned(snapshot: Snapshot, directory: Path) -> dict[Path, Path]:
    """Return the root and data disks in a snapshot, each with its place in another VM's directory."""
    copies = {
        source: directory / target.name
        for source, target in _copies(snapshot).items()
        if target.name in ("root.raw", "root.qcow2") or target.name.startswith("data-")
    }
    if not any(target.name.startswith("root.") for target in copies.values()):
        raise MicrovmError(
            f"the snapshot '{snapshot.name}' has no root disk as ch_disks makes them, so that nothing can be cloned",
            option="source",
        )
    return copies
