# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a VmConfig does not fit together. Pure.

The VMM finds this when the VM boots (vmm/src/config.rs, validate); here it is found before anything is made, and the
option is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .addressing import FIRST_CID, LAST_CID
from .errors import MicrovmError

Config = Mapping[str, Any]
_PAGE = 4096
_MIB = 1 << 20
# VIRTIO_BLK_ID_BYTES (virtio 1.2, 5.2.6)
_MAX_SERIAL = 20


def check(config: Config) -> None:
    """Raise MicrovmError, naming the option, for the first thing that no VM could be booted with."""
    _check_payload(config["payload"])
    _check_cpus(config["cpus"])
    _check_memory(config["memory"])
    _check_shared_memory(config)
    _check_disks(config)
    _check_nets(config)
    cid = config.get("vsock", {}).get("cid", 0)
    if "vsock" in config and not FIRST_CID <= cid <= LAST_CID:
        raise MicrovmError(f"{cid!r} is not a guest's context id; use {FIRST_CID} to {LAST_CID}", option="vsock.cid")
    if "balloon" in config and config["balloon"]["size"] >= total_memory(config["memory"]):
        raise MicrovmError("is as large as the memory, or larger", option="balloon.size")
    ids = list(_ids(config))
    _refuse_twice(ids, "id", "disks, nets or other devices")
    for name in ids:
        if name.startswith("__"):
            raise MicrovmError(f"the id {name!r} begins with two underscores, as the VMM's own do", option="id")
        if "/" in name or name in ("", ".", ".."):
            raise MicrovmError(
                f"the id {name!r} cannot name a file, as it does in a snapshot; leave '/' out", option="id"
            )


def total_memory(memory: Config) -> int:
    """Return how much memory a VM has in all, in bytes."""
    parts = [memory, *memory.get("zones", ())]
    return sum(part["size"] + (part.get("hotplugged_size") or 0) for part in parts)


def _ids(config: Config) -> Iterator[str]:
    for value in config.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Mapping) and "id" in part:
                yield part["id"]


def _refuse_twice(values: Sequence[str], what: str, option: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise MicrovmError(f"the {what} {value!r} stands twice; each has one of its own", option=option)


def _check_payload(payload: Config) -> None:
    if sum(key in payload for key in ("kernel", "firmware", "igvm")) != 1:
        raise MicrovmError("give either a kernel, a firmware or an igvm for the VM to boot", option="payload")
    if "firmware" in payload and {"initramfs", "cmdline"} & payload.keys():
        raise MicrovmError("a firmware finds kernel, initramfs and cmdline itself; leave them out", option="payload")


def _check_cpus(cpus: Config) -> None:
    boot, most = cpus["boot_vcpus"], cpus["max_vcpus"]
    if not 1 <= boot <= most:
        raise MicrovmError(f"boot is {boot} and max is {most}; it takes 1 <= boot <= max", option="cpus")
    if "topology" in cpus:
        product = math.prod(cpus["topology"].values())
        if product != most:
            raise MicrovmError(f"makes {product} vCPUs, and cpus.max is {most}", option="cpus.topology")


def _check_memory(memory: Config) -> None:
    zones = memory.get("zones", ())
    if zones and memory["size"]:
        raise MicrovmError("is the zones' sum where there are zones; leave it out", option="memory.size")
    _refuse_twice([zone["id"] for zone in zones], "id", "memory.zones")
    for name, part in (("memory", memory), *((f"memory.zones.{zone['id']}", zone) for zone in zones)):
        size = part["size"]
        if not (zones and part is memory) and (size < _MIB or size % _PAGE):
            raise MicrovmError(
                f"{size} bytes are asked for; give at least 1MiB, in pages of {_PAGE} bytes", option=f"{name}.size"
            )
        if "hugepage_size" in part and not part.get("hugepages"):
            raise MicrovmError("counts with hugepages only", option=f"{name}.hugepage_size")
        if part.get("shared") and part.get("mergeable"):
            raise MicrovmError("what is shared is never merged; leave out one of both", option=f"{name}.mergeable")
        if part.get("hotplugged_size", 0) > part.get("hotplug_size", 0):
            raise MicrovmError("is more than hotplug_size", option=f"{name}.hotplugged_size")
        virtio = memory.get("hotplug_method") == "VirtioMem"
        for key in ("hotplug_size", "hotplugged_size"):
            if key in part and not virtio and (part is not memory or key == "hotplugged_size"):
                raise MicrovmError("takes memory.hotplug_method: virtio_mem", option=f"{name}.{key}")


def shared_memory(memory: Config) -> bool:
    """Return whether other processes can have the memory, as vhost-user and vfio-user take it."""
    zones = memory.get("zones", ()) if not memory["size"] else ()
    return bool(
        memory.get("shared")
        or memory.get("hugepages")
        or (zones and all(zone.get("shared") or zone.get("hugepages") for zone in zones))
    )


def _check_shared_memory(config: Config) -> None:
    backed = [kind for kind in ("fs", "generic_vhost_user", "user_devices") if config.get(kind)]
    backed += [
        f"{option}.vhost_socket" for option, kind in (("disks", "disks"), ("nets", "net")) if _vhost(config, kind)
    ]
    if backed and not shared_memory(config["memory"]):
        raise MicrovmError("takes memory.shared: true, or huge pages", option=backed[0])


def _vhost(config: Config, kind: str) -> bool:
    return any(device.get("vhost_user") for device in config.get(kind, ()))


def _check_queue_size(size: int | None, option: str) -> None:
    if size is not None and size & (size - 1):
        raise MicrovmError(f"{size} is no power of 2", option=option)


def _check_disks(config: Config) -> None:
    disks, boot = config["disks"], config["cpus"]["boot_vcpus"]
    _refuse_twice([disk["path"] for disk in disks if "path" in disk], "path", "disks")
    groups = [group["id"] for group in config.get("rate_limit_groups", ())]
    for disk in disks:
        if disk.get("num_queues", 1) > boot:
            raise MicrovmError(f"{disk['num_queues']} are more than cpus.boot, {boot}", option="disks.num_queues")
        _check_queue_size(disk.get("queue_size"), "disks.queue_size")
        if len(disk.get("serial", "").encode()) > _MAX_SERIAL:
            raise MicrovmError(f"{disk['serial']!r} has more than {_MAX_SERIAL} bytes", option="disks.serial")
        if "rate_limit_group" in disk and disk["rate_limit_group"] not in groups:
            raise MicrovmError(
                f"{disk['rate_limit_group']!r} is none of rate_limit_groups: {', '.join(groups) or 'there are none'}",
                option="disks.rate_limit_group",
            )
        limits = [key for key in ("rate_limiter_config", "rate_limit_group") if key in disk]
        if len(limits) > 1 or (limits and disk.get("vhost_user")):
            raise MicrovmError(
                "a disk has a rate_limit, a rate_limit_group or a vhost_socket; give one of them",
                option="disks.rate_limit",
            )


def _check_nets(config: Config) -> None:
    nets, boot = config["net"], config["cpus"]["boot_vcpus"]
    _refuse_twice([net["tap"] for net in nets if "tap" in net], "TAP", "nets")
    for net in nets:
        queues = net.get("num_queues", 2)
        if queues % 2 or queues // 2 > boot:
            raise MicrovmError(f"{queues} are not two for each of at most {boot} vCPUs", option="nets.num_queues")
        _check_queue_size(net.get("queue_size"), "nets.queue_size")
        if not net.get("offload_csum", True) and (net.get("offload_tso", True) or net.get("offload_ufo", True)):
            raise MicrovmError("false takes offload_tso and offload_ufo false as well", option="nets.offload_csum")
        if "rate_limiter_config" in net and net.get("vhost_user"):
            raise MicrovmError("a NIC with a vhost_socket has none", option="nets.rate_limit")
