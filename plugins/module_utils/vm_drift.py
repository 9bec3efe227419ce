# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a VM that runs is otherwise than what is asked for, and how each difference goes away. Pure.

Facts from Cloud Hypervisor v53.0: vmm/src/vm.rs (resize, resize_zone, add_*), vmm/src/memory_manager.rs (hot-plug in units
of 128 MiB, virtio-mem in units of 2 MiB) and vmm/src/device_manager.rs (remove_device).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import vm_drift_devices
from .vm_changes import Call, Change, leaves, settled
from .vm_checks import total_memory
from .vm_config import DEVICES
from .vm_properties import VM
from .vm_schema import Property, normalised

Config = Mapping[str, Any]
_ACPI_UNIT = 128 << 20
_VIRTIO_MEM_UNIT = 2 << 20
_TABLE: Mapping[str, Property] = {prop.key: prop for prop in VM if prop.key is not None}
_PORTS = ("serial", "console", "debug_console")


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known beside the two VmConfigs.

    ``booted_memory`` is what the VM has booted with, in bytes, where that is on record. ``lingering`` are the devices that
    were unplugged and that the guest has not let go of. ``replug``: a device that is in use may be plugged anew.
    """

    booted_memory: int | None = None
    lingering: frozenset[str] = frozenset()
    replug: bool = False


NOTHING_SPECIAL = Situation()


def compare(live: Config, wanted: Config, situation: Situation = NOTHING_SPECIAL) -> tuple[Change, ...]:
    """Return the differences between vm.info's VmConfig and the one that is asked for, each with how it goes away.

    What the VMM fills in by itself is none.
    """
    have, want = _comparable(live), _comparable(wanted)
    return (
        *_cpus(have, want),
        *_memory(have["memory"], want["memory"], situation),
        *_balloon(have.get("balloon"), want.get("balloon")),
        *(
            change
            for kind in (*DEVICES, "vsock")
            for change in vm_drift_devices.devices(
                kind, _TABLE[kind], have, want, situation.lingering, told=wanted, replug=situation.replug
            )
        ),
        *_rest(have, want),
    )


def calls(changes: Sequence[Change]) -> list[Call]:
    """Return what the VMM is asked for to make the changes that are made live, in an order that works.

    What goes comes before what takes its id, path or TAP; vCPUs and memory come before the devices that need them.
    """
    order = ("remove", "vcpus", "memory", "zone", "add", "disk", "balloon")
    todo = [call for change in changes if change.how == "live" for call in change.calls]
    return sorted(todo, key=lambda call: order.index(call.what))


def lingering(info: Mapping[str, Any]) -> frozenset[str]:
    """Return the devices in vm.info's ``device_tree`` that are not in its VmConfig any more: the guest still has them."""
    prefix = "_virtio-pci-"
    there = {name.removeprefix(prefix) for name in info.get("device_tree") or {} if name.startswith(prefix)}
    config = info.get("config") or {}
    known = {
        part["id"]
        for value in config.values()
        for part in (value if isinstance(value, list) else [value])
        if isinstance(part, Mapping) and part.get("id")
    }
    return frozenset(name for name in there - known if not name.startswith("__"))


def _comparable(config: Config) -> dict[str, Any]:
    result = normalised(VM, config)
    result.setdefault("memory", {})
    result["memory"].setdefault("size", 0)
    for port in _PORTS:
        # The VMM says there which terminal it has opened.
        if result.get(port, {}).get("mode") != "File":
            result.get(port, {}).pop("file", None)
    return result


def _cpus(have: Config, want: Config) -> Iterator[Change]:
    mine, theirs = dict(have["cpus"]), dict(want["cpus"])
    before, after = mine.pop("boot_vcpus"), theirs.pop("boot_vcpus")
    if before != after:
        change = Change("cpus.boot", before, after, "live", calls=(Call("vcpus", value=after),))
        if after > mine["max_vcpus"]:
            change = change.restart(f"it has booted with cpus.max: {mine['max_vcpus']}")
        elif have.get("platform", {}).get("tdx"):
            change = change.restart("a TDX guest keeps its vCPUs")
        yield change
    yield from leaves(_TABLE["cpus"].fields, mine, theirs, at="cpus")


def _memory(have: Config, want: Config, situation: Situation) -> Iterator[Change]:
    moving = ("size", "hotplugged_size", "zones")
    yield from leaves(
        _TABLE["memory"].fields,
        {key: value for key, value in have.items() if key not in moving},
        {key: value for key, value in want.items() if key not in moving},
        at="memory",
    )
    if have.get("zones") or want.get("zones"):
        yield from _zones(have, want)
        return
    before, after = total_memory(have), total_memory(want)
    if before != after:
        reason = _memory_needs_restart(have, before, after, situation.booted_memory)
        change = Change("memory.size", before, after, "live", calls=(Call("memory", value=after),))
        yield change.restart(reason) if reason else change


def _memory_needs_restart(have: Config, before: int, after: int, booted: int | None) -> str:
    room = have.get("hotplug_size", 0)
    if have.get("hotplug_method") == "VirtioMem":
        return _virtio_mem_needs_restart(have, after)
    if after < before:
        return "with memory.hotplug_method: acpi the guest keeps what it has"
    if after > (have["size"] if booted is None else booted) + room:
        return f"it has booted with memory.hotplug_size: {room}"
    return f"it comes in units of {_ACPI_UNIT} bytes" if (after - before) % _ACPI_UNIT else ""


def _virtio_mem_needs_restart(part: Config, after: int) -> str:
    if not part["size"] <= after <= part["size"] + part.get("hotplug_size", 0):
        return f"it has booted with {part['size']} bytes and hotplug_size: {part.get('hotplug_size', 0)}"
    return f"it comes in units of {_VIRTIO_MEM_UNIT} bytes" if (after - part["size"]) % _VIRTIO_MEM_UNIT else ""


def _zones(have: Config, want: Config) -> Iterator[Change]:
    mine, theirs = have.get("zones", []), want.get("zones", [])

    def kept(zones: Sequence[Config]) -> list[dict[str, Any]]:
        return [{key: zone[key] for key in zone if key not in ("size", "hotplugged_size")} for zone in zones]

    if kept(mine) != kept(theirs) or have["size"] != want["size"]:
        yield Change("memory.zones", mine, theirs, "restart", "zones come and go at a boot only")
        return
    for zone, asked in zip(mine, theirs, strict=True):
        before, after = total_memory(zone), total_memory(asked)
        if before == after:
            continue
        name = zone["id"]
        change = Change(
            f"memory.zones.{name}.size", before, after, "live", calls=(Call("zone", name=name, value=after),)
        )
        reason = _virtio_mem_needs_restart(zone, after)
        yield change.restart(reason) if reason else change


def _balloon(have: Config | None, want: Config | None) -> Iterator[Change]:
    if have is None or want is None:
        if have != want:
            yield Change("balloon", have, want, "restart", "a balloon comes and goes at a boot only")
        return
    mine, theirs = dict(settled(_TABLE["balloon"].fields, have, want)), dict(want)
    before, after = mine.pop("size"), theirs.pop("size")
    if before != after:
        yield Change("balloon.size", before, after, "live", calls=(Call("balloon", value=after),))
    yield from leaves(_TABLE["balloon"].fields, mine, theirs, at="balloon")


def _rest(have: Config, want: Config) -> Iterator[Change]:
    compared = {"cpus", "memory", "balloon", "vsock", *DEVICES}
    for key, prop in _TABLE.items():
        if key in compared:
            continue
        mine, theirs = have.get(key), want.get(key)
        if key == "landlock_rules" and all(rule in (mine or ()) for rule in theirs or ()):
            continue  # ch_vm adds rules of its own
        is_part = prop.kind == "dict" and not prop.many
        if is_part and not (prop.presence and (mine is None) != (theirs is None)):
            mine, theirs = mine or {}, theirs or {}
            yield from leaves(prop.fields, settled(prop.fields, mine, theirs), theirs, at=str(prop.option))
        elif mine != theirs and not (prop.own and theirs is None):
            before, after = (prop.default if value is None else value for value in (mine, theirs))
            yield Change(str(prop.option), before, after, "restart")


def all_need_restart(changes: Sequence[Change], reason: str) -> tuple[Change, ...]:
    """Return the changes with none of them made live, for a VMM that lacks what is asked for."""
    return tuple(change.restart(reason) if change.how == "live" else change for change in changes)
