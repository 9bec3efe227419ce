# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks that are to be larger than their images: what the VMM grows, and what only a VM that is stopped can be given.

Facts from the releases' sources (block/src: who implements ``resize``), tried on v43.0 to v53.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from . import qemu_img
from .vm_changes import Call, Change
from .vm_config import Spec
from .vm_schema import Version, spelled

# The first releases that grow an image of the kind while the VM runs. None grows another kind.
_GROWN_SINCE: Mapping[str, Version] = {"Raw": (50, 0), "Qcow2": (51, 0)}


def changes(spec: Spec, release: Version) -> tuple[Change, ...]:
    """Return the disks whose images are not as large as they are asked to be, for a VMM of this release."""
    found: list[Change] = []
    for disk in spec.config["disks"]:
        name = disk["id"]
        before, after = _size(disk) if name in spec.sizes else None, spec.sizes.get(name)
        if before is None or after is None or before == after:
            continue
        change = Change(f"disks.{name}.size", before, after, "live", calls=(Call("disk", "disks", name, after),))
        reason = "what is at the end of a disk that becomes smaller is lost" if after < before else ""
        reason = reason or _cannot_grow(disk, release)
        found.append(change.refuse(reason) if reason else change)
    return tuple(found)


def _size(disk: Mapping[str, Any]) -> int | None:
    """Return how large the image is for a guest, in bytes; None where it is not there, or is none."""
    if "path" not in disk:
        return None
    with suppress(OSError, ValueError):
        return qemu_img.size_of_attached(disk)
    return None


def _cannot_grow(disk: Mapping[str, Any], release: Version) -> str:
    stopped = "stop the VM and have ch_disks, or qemu-img, make it larger"
    since = _GROWN_SINCE.get(disk["image_type"])
    if since is None:
        return f"Cloud Hypervisor grows no image of this kind; {stopped}"
    if disk.get("backing_files"):
        return f"Cloud Hypervisor grows no image that is based on another; {stopped}"
    if release < since:
        return f"growing it needs Cloud Hypervisor {spelled(since)} or later, and this is {spelled(release)}; {stopped}"
    return ""
