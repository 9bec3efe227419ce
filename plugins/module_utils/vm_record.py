# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The record of what was asked for a VM: ``vm.json`` in its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import MicrovmError
from .files import write_json
from .vm_paths import Paths


def read(paths: Paths) -> dict[str, Any] | None:
    """Return what was asked, or None where nothing was. Raises MicrovmError for a record that is damaged."""
    try:
        return dict(json.loads(paths.record.read_bytes()))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise MicrovmError(f"'{paths.record}' is not JSON ({error}); remove it and run again") from error


def write(paths: Paths, record: Mapping[str, Any]) -> None:
    """Replace the record."""
    write_json(paths.record, record)


def taps(record: Mapping[str, Any]) -> set[str]:
    """Return the TAPs that may be there for a VM: those that are asked for, and those of NICs that it had."""
    booted = record.get("booted") or {}
    nets = [*record.get("config", {}).get("net", ()), *booted.get("config", {}).get("net", ())]
    return {net["tap"] for net in nets if "tap" in net} | set(booted.get("taps", ()))


def attached_disks(record: Mapping[str, Any], config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the disks that a VMM says it has, as they are on record: its word, by which root would copy any file, is not enough.

    Raises MicrovmError for one that is not on record.
    """
    booted = (record.get("booted") or {}).get("config", {})
    disks = [*(booted.get("disks") or ()), *(record.get("config", {}).get("disks") or ())]
    by_name = {(disk["id"], disk.get("path")): disk for disk in disks}
    found = []
    for disk in config.get("disks") or ():
        name = (disk.get("id"), disk.get("path"))
        if name not in by_name:
            raise MicrovmError(
                f"the VMM has the disk {name[0]!r}, {name[1]!r}, which is not on record; bring the VM to what is asked for, "
                "or restart it",
                option="disks",
            )
        found.append(by_name[name])
    return found


def known(state_dir: Path) -> list[str]:
    """Return the names of the VMs on record."""
    return sorted(path.parent.name for path in (state_dir / "vms").glob("*/vm.json"))
