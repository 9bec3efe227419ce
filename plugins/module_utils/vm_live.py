# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changing a VM while it runs: finding out what is otherwise, and asking the VMM for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from . import tap, vm_drift, vm_growth, vm_plan, vm_prepare, vm_record, vm_start, vmm_versions
from .errors import MicrovmError
from .vm_changes import Call, Change
from .vm_config import Spec
from .vm_schema import Version
from .vm_state import Current, Vm
from .vmm_api import DeviceKind

# How long a guest has to let go of a device.
UNPLUG_SECONDS = 10.0
_POLL_SECONDS = 0.05
_KINDS: Mapping[str, DeviceKind] = {
    "disks": "disk",
    "net": "net",
    "fs": "fs",
    "pmem": "pmem",
    "devices": "device",
    "user_devices": "user-device",
    "vdpa": "vdpa",
    "generic_vhost_user": "generic-vhost-user",
    "vsock": "vsock",
}


def drift(vm: Vm, now: Current, spec: Spec, files: Mapping[str, Any], *, replug: bool = False) -> tuple[Change, ...]:
    """Return what a VM that runs is otherwise than what is asked for; ``files`` identifies the files that are there now.

    Raises MicrovmError where its VMM does not answer.
    """
    live = now.info.get("config")
    if now.pid is None or live is None:
        return ()
    booted = (now.record or {}).get("booted") or {}
    situation = vm_drift.Situation(
        booted_memory=booted.get("config", {}).get("memory", {}).get("size"),
        lingering=vm_drift.lingering(now.info),
        replug=replug,
    )
    running = vmm_versions.parse(vm.client().ping()["version"])
    grown = vm_growth.changes(spec, running)
    try:
        changes = (*vm_drift.compare(live, vmm_versions.adapted(spec.config, running), situation), *grown)
    except MicrovmError as lacking:
        compared = vm_drift.compare(live, spec.config, situation)
        changes = vm_drift.all_need_restart((*compared, *grown), str(lacking))
    left = {change.option for change in changes}
    gone = [
        Change(name, "unplugged", "unplugged", "restart", "was unplugged, and the guest has not let go of it")
        for name in sorted(situation.lingering)
    ]
    replaced = [
        Change(name, "", "", "restart", "was replaced")
        for name, identity in files.items()
        if booted.get("files", {}).get(name, identity) != identity
        and not any(option == name or option.startswith(f"{name}.") for option in left)
    ]
    return (*changes, *gone, *replaced)


def after_boot(spec: Spec, release: Version) -> tuple[Call, ...]:
    """Return what grows the disks of a VM that starts. Raises MicrovmError for one that cannot be given its size."""
    changes = vm_growth.changes(spec, release)
    return vm_plan.decide(changes, apply="live", wanted="running", state="stopped").calls


def apply(vm: Vm, todo: Sequence[Call], spec: Spec) -> None:
    """Ask the VMM for the changes, in order. Raises MicrovmError, saying what was done before the one that failed.

    The TAPs of NICs are made before, and removed once the guest has let go of them.
    """
    done: list[str] = []
    plugs_in = any(call.what == "add" for call in todo)
    for call in todo:
        if call.what == "add":
            vm_prepare.require_backends({call.kind: [call.value]})
    made = vm_prepare.prepare(vm, replace(spec, taps=_needed(todo, spec))) if plugs_in else []
    try:
        for call in todo:
            _ask(vm, call)
            done.append(call.words)
            if call.kind == "net" and call.what == "add":
                made = [name for name in made if name != call.value.get("tap")]
    except MicrovmError as error:
        for name in made:
            tap.remove(vm.runner, name)
        if done:
            error.message = f"{error.message}; done before: {', '.join(done)}"
        raise
    finally:
        _remember(vm, todo, spec)


def _needed(todo: Sequence[Call], spec: Spec) -> tuple[tap.Tap, ...]:
    plugged = [call.value.get("tap") for call in todo if call.what == "add" and call.kind == "net"]
    return tuple(wanted for wanted in spec.taps if wanted.name in plugged)


def _ask(vm: Vm, call: Call) -> None:
    client = vm.client(timeout=60.0)
    match call.what:
        case "vcpus":
            client.resize(vcpus=call.value)
        case "memory":
            client.resize(memory=call.value)
        case "balloon":
            client.resize(balloon=call.value)
        case "zone":
            client.resize_zone(call.name, call.value)
        case "disk":
            client.resize_disk(call.name, call.value)
        case "add":
            client.add(_KINDS[call.kind], call.value)
        case "remove":
            _unplug(vm, call)


def _unplug(vm: Vm, call: Call) -> None:
    info = vm.client().info()
    held = next((net.get("tap") for net in info["config"].get("net") or () if net.get("id") == call.name), None)
    vm.client().remove_device(call.name)
    deadline = time.monotonic() + (UNPLUG_SECONDS if info["state"] == "Running" else 0)
    while call.name in vm_drift.lingering(vm.client().info()):
        if time.monotonic() > deadline:
            return  # what waits for it fails, and the next run tells of it
        time.sleep(_POLL_SECONDS)
    # The name is the VMM's word: it counts where it is one of the VM's own TAPs.
    if call.kind == "net" and held is not None and held in vm_record.taps(vm_record.read(vm.paths) or {}):
        tap.remove(vm.runner, held)


def _remember(vm: Vm, todo: Sequence[Call], spec: Spec) -> None:
    """Keep on record which TAPs there may be, and which files are open, for those that ask later."""
    record = vm_record.read(vm.paths) or {}
    booted = record.get("booted") or {}
    opened = {f"{call.kind}.{call.name}" for call in todo if call.what == "add"}
    known = {name: identity for name, identity in booted.get("files", {}).items() if name not in opened}
    files = {**vm_start.identities(spec, check_mode=True), **known}
    taps = sorted({*vm_record.taps(record), *(wanted.name for wanted in spec.taps)})
    vm_record.write(vm.paths, {**record, "booted": {**booted, "files": files, "taps": taps}})
