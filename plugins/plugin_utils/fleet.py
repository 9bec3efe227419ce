# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The VMs of a fleet, whose hosts are looked up in its placements. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..module_utils.errors import MicrovmError
from ..module_utils.image_cache import DEFAULT_SIZE
from ..module_utils.sizes import parse_size
from ..module_utils.vm_config import DEFAULT_MEMORY
from .compose import ComposeError, Entry


def placed_on(fleet: Iterable[Entry], host: str, placements: Mapping[str, str], *, strict: bool = True) -> list[Entry]:
    """Return the entries whose place is ``host``. With ``strict``, raises ComposeError where one has no place at all."""
    entries = list(fleet)
    homeless = [str(entry.get("name")) for entry in entries if entry.get("name") not in placements]
    if strict and homeless:
        raise ComposeError(
            f"these of vm_fleet have no host yet: {', '.join(homeless)}; run the playbook microvm.cloud_hypervisor.place"
        )
    return [entry for entry in entries if placements.get(str(entry.get("name"))) == host]


def demands(entries: Iterable[Entry], images: Iterable[Entry], *, strict: bool = True) -> list[dict[str, Any]]:
    """Return what ch_placement asks of each entry, with the modules' defaults filled in.

    As in what a host promises, the memory is the most that the guest can have, the vCPUs are those that it can have, and
    the disk space is that of all its disks grown to their full size. An entry with a size that is none raises MicrovmError
    where ``strict`` says so, and is left out otherwise.
    """
    image_sizes = {image["name"]: image.get("size") for image in images}
    found = []
    for entry in entries:
        try:
            found.append(_demand(entry, image_sizes))
        except MicrovmError as error:
            if strict:
                raise error.for_vm(str(entry["name"])) from None
    return found


def _demand(entry: Entry, image_sizes: Mapping[str, str | None]) -> dict[str, Any]:
    cpus = entry.get("cpus") or {}
    return {
        "name": entry["name"],
        "memory": str(_memory(entry)),
        "vcpus": cpus.get("max") or cpus.get("boot") or 1,
        "disk": str(_disk(entry, image_sizes.get(str(entry.get("image"))))),
        **{key: entry[key] for key in ("anti_affinity", "hosts") if entry.get(key) is not None},
    }


def _memory(entry: Entry) -> int:
    memory = entry.get("memory") or {}
    zones = memory.get("zones") or ()
    sizes = [("memory.size", memory.get("size") or ("0" if zones else DEFAULT_MEMORY))]
    for part in (memory, *zones):
        sizes.append(("memory.hotplug_size", part.get("hotplug_size") or "0"))
    sizes += [("memory.zones.size", zone["size"]) for zone in zones]
    return _total(sizes)


def _disk(entry: Entry, image_size: str | None) -> int:
    root = (entry.get("root") or {}).get("size") or image_size or DEFAULT_SIZE
    data = entry.get("data") or ()
    return _total([("root.size", root), *((f"data.{disk['name']}.size", disk["size"]) for disk in data)])


def _total(sizes: Iterable[tuple[str, str | int]]) -> int:
    return sum(parse_size(size, option=option) for option, size in sizes)
