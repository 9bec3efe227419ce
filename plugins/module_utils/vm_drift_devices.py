# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Devices that a VM that runs has too many, too few, or otherwise. Pure.

A device is known by its id. What a guest may be using is plugged anew only where that is asked for: what it has not written
yet to a disk would be lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .vm_changes import Call, Change, leaves, settled
from .vm_checks import shared_memory
from .vm_schema import Property

Config = Mapping[str, Any]
# The virtio ids (virtio 1.2, section 5) that v53.0's remove_device takes away: net, block, vsock, fs, pmem.
_REMOVABLE_TYPES = (1, 2, 19, 26, 27)
_NEED_SHARED_MEMORY = ("fs", "generic_vhost_user", "user_devices")
_REPLUG = "it would have to be plugged anew, which is done live with replug: true only"


def devices(
    kind: str, prop: Property, have: Config, want: Config, lingering: frozenset[str], *, told: Config, replug: bool
) -> list[Change]:
    """Return the differences of one kind of devices, which is the property ``prop``.

    ``told`` is the VmConfig that is asked for with its defaults, of which the VMM is told.
    """
    whole = {_name(prop, device): device for device in _listed(told.get(kind))}
    mine, theirs = ({_name(prop, device): device for device in _listed(config.get(kind))} for config in (have, want))
    root = next(iter(mine), None) if kind == "disks" else None
    changes: list[Change] = []
    for name, device in mine.items():
        asked = theirs.get(name)
        if asked is None:
            changes.append(_removal(kind, prop, name, device, is_root=name == root))
        elif settled(prop.fields, device, asked) != asked:
            changes += _alteration(kind, prop, device, asked, have, whole[name], is_root=name == root, replug=replug)
    for name, asked in theirs.items():
        if name not in mine:
            changes.append(_addition(kind, prop, name, asked, have, whole[name], lingering))
    return _without_conflicts(list(mine.values()), changes)


def _without_conflicts(there: Sequence[Config], changes: list[Change]) -> list[Change]:
    """Leave what takes the TAP, file or socket of a device that stays to the restart, too."""
    while True:
        calls = [call for change in changes for call in change.calls]
        going = {call.name for call in calls if call.what == "remove"}
        held = {claim for device in there if device.get("id") not in going for claim in _claims(device)}
        settled_now = [
            change.restart("another device has until then what it takes")
            if any(held & _claims(call.value) for call in change.calls if call.what == "add")
            else change
            for change in changes
        ]
        if settled_now == changes:
            return changes
        changes = settled_now


def _claims(device: Config) -> set[tuple[str, str]]:
    return {(key, device[key]) for key in ("tap", "path", "file", "socket", "vhost_socket") if key in device}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _name(prop: Property, device: Config) -> str:
    """Return what a device is known by; there is one of a kind that is no list."""
    return str(device.get("id", "")) if prop.many else str(prop.option)


def _removal(kind: str, prop: Property, name: str, device: Config, *, is_root: bool) -> Change:
    calls = (Call("remove", kind, device.get("id", name)),)
    change = Change(_at(prop, name), device, None, "live", calls=calls)
    if is_root:
        return change.refuse("it is the root disk, which a VM that runs keeps; stop the VM first")
    return change if _removable(kind, device) else change.restart("this type of device is not unplugged")


def _removable(kind: str, device: Config) -> bool:
    return kind != "generic_vhost_user" or device.get("device_type") in _REMOVABLE_TYPES


def _addition(
    kind: str, prop: Property, name: str, asked: Config, have: Config, whole: Config, lingering: frozenset[str]
) -> Change:
    change = Change(_at(prop, name), None, asked, "live", calls=(Call("add", kind, name, whole),))
    reason = _cannot_add(kind, asked, have)
    if name in lingering:
        reason = "the guest has not let go of the device of this name that was unplugged"
    return change.restart(reason) if reason else change


def _cannot_add(kind: str, asked: Config, have: Config) -> str:
    if (kind in _NEED_SHARED_MEMORY or asked.get("vhost_user")) and not shared_memory(have["memory"]):
        return "the VM has booted without shared memory"
    if asked.get("iommu") and not have.get("iommu"):
        return "the VM has booted without a virtual IOMMU"
    groups = [group["id"] for group in have.get("rate_limit_groups", ())]
    if asked.get("rate_limit_group") not in (None, *groups):
        return "the VM has booted without its rate_limit_group"
    if asked.get("pci_segment", 0) >= have.get("platform", {}).get("num_pci_segments", 1):
        return "the VM has booted with fewer PCI segments"
    return ""


def _alteration(
    kind: str,
    prop: Property,
    device: Config,
    asked: Config,
    have: Config,
    whole: Config,
    *,
    is_root: bool,
    replug: bool,
) -> Iterator[Change]:
    name = _name(prop, asked)
    reason = _cannot_add(kind, asked, have) or ("" if _removable(kind, device) else "it is not unplugged")
    if replug and not reason and not is_root:
        calls = (Call("remove", kind, device.get("id", name)), Call("add", kind, name, whole))
        yield Change(_at(prop, name), device, asked, "live", calls=calls)
        return
    for change in leaves(prop.fields, settled(prop.fields, device, asked), asked, at=_at(prop, name)):
        if is_root and change.option.endswith((".path", ".vhost_socket", ".image_type")):
            yield change.refuse("it is the root disk, which a VM that runs keeps; stop the VM first")
        else:
            yield change.restart("it is the root disk" if is_root else reason or _REPLUG)


def _at(prop: Property, name: str) -> str:
    return f"{prop.option}.{name}" if prop.many else str(prop.option)
