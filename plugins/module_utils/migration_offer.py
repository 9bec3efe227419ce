# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host tells of a VM that is to move to another one, and whether that can take it.

What it tells is checked first as to whether this host wants to: see migration_trust.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import snapshot_disks, vm_access, vmm_versions
from .errors import MicrovmError
from .runner import Runner
from .vm_migration import SENDS_PAUSED
from .vm_paths import Paths
from .vm_schema import spelled

# Their state is in the host, or in another process.
_BOUND = ("fs", "pmem", "devices", "user_devices", "vdpa", "generic_vhost_user")
_PROBE = ".microvm-shared."


def make(paths: Paths, record: Mapping[str, Any], config: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Return the offer of a VM: plain data. Raises MicrovmError, naming the option, for what cannot leave the host.

    Disks in the VM's own directory are copied. Those elsewhere are to be on storage that both hosts have: of each, the
    directory is told.
    """
    refuse_bound(config)
    for disk in config.get("disks") or ():
        path = Path(disk.get("path") or "")
        if not path.is_file():
            raise MicrovmError(
                f"'{disk.get('path') or disk['id']}' is no file: such a disk can neither be copied nor be found to be shared; it moves with a VM "
                "that is stopped",
                option=f"disks.{disk['id']}",
            )
    own = own_disks(config, paths)
    backing = {str(use.path) for use in vm_access.backing_files(config)}
    payload = {str(use.path) for use in vm_access.files(config) if use.option.startswith("payload.")}
    return {
        "name": paths.name,
        "record": record["options"],
        "vmm_version": version,
        "net": [{key: net.get(key) for key in ("tap", "host_mac")} for net in config.get("net") or ()],
        "copied": [
            {"path": str(path), "size": path.stat().st_size, "allocated": snapshot_disks.allocated([path])}
            for path in sorted(own)
        ],
        "shared": shared_disks(config, paths),
        "backing": sorted(backing),
        "files": {path: Path(path).stat().st_size for path in sorted(backing | payload)},
    }


def own_disks(config: Mapping[str, Any], paths: Paths) -> dict[Path, Mapping[str, Any]]:
    """Return the disks of a VmConfig that lie in the VM's own directory, by their paths: those that are copied."""
    disks = {Path(disk["path"]): disk for disk in config.get("disks") or () if disk.get("path")}
    return {path: disk for path, disk in disks.items() if path.parent == paths.state}


def shared_disks(config: Mapping[str, Any], paths: Paths) -> list[str]:
    """Return the paths of the others, which both hosts must have."""
    own = own_disks(config, paths)
    paths_of_all = (disk["path"] for disk in config.get("disks") or () if disk.get("path"))
    return sorted(path for path in paths_of_all if Path(path) not in own)


def refuse_bound(config: Mapping[str, Any]) -> None:
    """Raise MicrovmError for a VM with devices that no other host has."""
    for option in _BOUND:
        if config.get(option):
            raise MicrovmError("a VM that has one is bound to its host and cannot be migrated", option=option)


def leave_probes(shared: list[str]) -> list[str]:
    """Make an empty file beside each disk that is to be shared, and return their paths: on the other host they must be seen."""
    probes = []
    for directory in sorted({Path(path).parent for path in shared}):
        probe = directory / f"{_PROBE}{secrets.token_hex(8)}"
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        probes.append(str(probe))
    return probes


def remove_probes(probes: list[str]) -> None:
    """Remove what ``leave_probes`` made."""
    for probe in probes:
        if is_probe(probe):
            Path(probe).unlink(missing_ok=True)


def is_probe(path: str) -> bool:
    """Return whether a path is one of those that ``leave_probes`` makes."""
    return Path(path).name.startswith(_PROBE)


def check(offer: Mapping[str, Any], paths: Paths, runner: Runner, vmm: str) -> None:
    """Raise MicrovmError, naming the option, where this host cannot take the VM as it is offered."""
    there, here = vmm_versions.parse(offer["vmm_version"]), vmm_versions.installed(runner, vmm)
    if here < there:
        raise MicrovmError(
            f"the VM runs in {spelled(there)}, and this host has {spelled(here)}: a VMM takes over from its own version or "
            "an older one; install that version here",
            option="vmm",
        )
    if offer["copied"] and there < SENDS_PAUSED:
        raise MicrovmError(
            f"its disks would be copied, for which the guest is paused; a VM that is paused can be migrated from "
            f"{spelled(SENDS_PAUSED)} on, and this one runs in {spelled(there)}: have its disks on shared storage, or move it to a newer VMM first",
            option="disks",
        )
    for path, size in offer["files"].items():
        if not Path(path).is_file() or Path(path).stat().st_size != size:
            raise MicrovmError(
                f"'{path}' is not on this host, or is another file than on the one that the VM comes from; fetch it with "
                "ch_image",
                option="image",
            )
    for path in (*offer["shared"], *offer["probes"]):
        if not Path(path).exists():
            raise MicrovmError(
                f"'{path}' is not seen on this host: a disk outside of the VM's directory must be on storage that both hosts "
                "have mounted in the same place",
                option="disks",
            )
    needed = sum(disk["allocated"] for disk in offer["copied"])
    snapshot_disks.check_space(paths.state, needed, what="the copy of its disks")
