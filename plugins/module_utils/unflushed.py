# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks of which a VMM keeps something to itself while its guest is paused. Pure.

Cloud Hypervisor has the changed tables of a qcow2 image in memory until the guest flushes the disk or the VMM ends, and a pause
writes none (v53.0: sync_caches in block/src/formats/qcow/metadata.rs, pause in virtio-devices/src/block.rs). A guest that goes on
in another VMM, or from its memory of that moment, takes for written what the image does not have; and the VMM that it has
left writes its tables into an image that is another's by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import MicrovmError


def refuse(config: Mapping[str, Any], *, accepted: bool | None, what: str) -> None:
    """Raise MicrovmError for a disk of a VmConfig that ``what`` could damage, unless that is ``accepted``."""
    for disk in config.get("disks") or ():
        if disk.get("image_type") == "Qcow2" and not disk.get("readonly") and not accepted:
            raise MicrovmError(
                "is a qcow2 image that the guest writes to. Cloud Hypervisor keeps a part of it in memory until the guest "
                f"flushes it, so that {what} could damage it. Have raw disks, with root.mode=copy or reflink and "
                "data.format=raw of ch_disks; or accept it with accept_unflushed=true, once the guest has run sync and "
                "writes nothing",
                option=f"disks.{disk['id']}",
            )
