# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VmConfig: what a request may say, and what vm.info answers, with the defaults filled in (vmm/src/vm_config.rs).

Like the real VMM, unknown properties are dropped silently, and ``null`` is as good as nothing for an optional one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from .errors import BadJson

Json = dict[str, Any]
Parse = Callable[[Any], Any]
REQUIRED = object()


def _describe(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        return f"floating point `{value}`"
    if isinstance(value, str):
        return f'string "{value}"'
    return "sequence" if isinstance(value, list) else "map"


def _text(expected: str) -> Parse:
    def parse(value: Any) -> str:
        if not isinstance(value, str):
            raise BadJson(f"invalid type: {_describe(value)}, expected {expected}")
        return value

    return parse


def boolean(value: Any) -> bool:
    """Take a boolean."""
    if not isinstance(value, bool):
        raise BadJson(f"invalid type: {_describe(value)}, expected a boolean")
    return value


def _unsigned(bits: int) -> Parse:
    name = f"u{bits}"

    def parse(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise BadJson(f"invalid type: {_describe(value)}, expected {name}")
        if not 0 <= value < 1 << bits:
            raise BadJson(f"invalid value: {_describe(value)}, expected {name}")
        return value

    return parse


def nonzero(number: Parse, name: str) -> Parse:
    """Take a number that is not zero."""

    def parse(value: Any) -> int:
        if number(value) == 0:
            raise BadJson(f"invalid value: {_describe(value)}, expected a nonzero {name}")
        return int(value)

    return parse


def _one_of(*variants: str) -> Parse:
    def parse(value: Any) -> str:
        _text("variant identifier")(value)
        if value not in variants:
            names = [f"`{name}`" for name in variants]
            expected = " or ".join(names) if len(names) == 2 else f"one of {', '.join(names)}"
            raise BadJson(f"unknown variant `{value}`, expected {expected}")
        return str(value)

    return parse


def listed(item: Parse) -> Parse:
    """Take a list of what ``item`` takes."""

    def parse(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise BadJson(f"invalid type: {_describe(value)}, expected a sequence")
        return [item(part) for part in value]

    return parse


def struct(name: str, fields: Mapping[str, tuple[Parse, Any]], aliases: Mapping[str, str] | None = None) -> Parse:
    """Take an object; a field's default is a value, a function, None (left out), False in ``iommu`` (left out too)."""

    def parse(value: Any) -> Json:
        if not isinstance(value, dict):
            raise BadJson(f"invalid type: {_describe(value)}, expected struct {name}")
        given = {(aliases or {}).get(key, key): part for key, part in value.items()}
        result: Json = {}
        for field, (take, default) in fields.items():
            part = given.get(field)
            if part is not None:
                part = take(part)
            elif field in given and default is not None and default is not REQUIRED:
                part = take(part)  # null for a field that is not optional
            elif default is REQUIRED:
                raise BadJson(f"missing field `{field}`")
            else:
                part = default() if callable(default) else default
            if part is not None and not (field == "iommu" and "pci_segment" in fields and part is False):
                result[field] = part
        return result

    return parse


def mac_address(value: Any) -> str:
    """Take a MAC address."""
    _text("a string")(value)
    parts = str(value).split(":")
    if len(parts) != 6 or not all(len(part) == 2 and set(part.lower()) <= set("0123456789abcdef") for part in parts):
        raise BadJson(f"The provided MAC address is invalid: parsing of {value} into a MAC address failed")
    return str(value).lower()


def random_mac() -> str:
    """Make a locally administered unicast address."""
    first, *rest = secrets.token_bytes(6)
    return ":".join(f"{byte:02x}" for byte in (first & 0xFC | 2, *rest))


path, string = _text("path string"), _text("a string")
u8, u16, u32, u64 = (_unsigned(bits) for bits in (8, 16, 32, 64))
console_mode = _one_of("Off", "Pty", "Tty", "File", "Socket", "Null")

PCI: dict[str, tuple[Parse, Any]] = {
    "id": (string, None),
    "iommu": (boolean, False),
    "pci_segment": (u16, 0),
    "pci_device_id": (u8, None),
}
bucket = struct(
    "TokenBucketConfig", {"size": (u64, REQUIRED), "one_time_burst": (u64, None), "refill_time": (u64, REQUIRED)}
)
rate_limiter = struct("RateLimiterConfig", {"bandwidth": (bucket, None), "ops": (bucket, None)})
affinity = struct("VirtQueueAffinity", {"queue_index": (u16, REQUIRED), "host_cpus": (listed(u32), REQUIRED)})

disk = struct(
    "DiskConfig",
    {
        **PCI,
        "path": (path, None),
        "readonly": (boolean, False),
        "direct": (boolean, False),
        "num_queues": (u64, 1),
        "queue_size": (u16, 128),
        "vhost_user": (boolean, False),
        "vhost_socket": (string, None),
        "rate_limit_group": (string, None),
        "rate_limiter_config": (rate_limiter, None),
        "disable_io_uring": (boolean, False),
        "disable_aio": (boolean, False),
        "serial": (string, None),
        "queue_affinity": (listed(affinity), None),
        "backing_files": (boolean, False),
        "sparse": (boolean, True),
        "image_type": (_one_of("FixedVhd", "Qcow2", "Raw", "Vhdx", "Unknown"), "Unknown"),
        "lock_granularity": (_one_of("ByteRange", "Full"), "ByteRange"),
    },
)
net = struct(
    "NetConfig",
    {
        **PCI,
        "tap": (string, None),
        "ip": (string, None),
        "mask": (string, None),
        "mac": (mac_address, random_mac),
        "host_mac": (mac_address, None),
        "mtu": (u16, None),
        "num_queues": (u64, 2),
        "queue_size": (u16, 256),
        "vhost_user": (boolean, False),
        "vhost_socket": (string, None),
        "vhost_mode": (_one_of("Client", "Server"), "Client"),
        "rate_limiter_config": (rate_limiter, None),
        "offload_tso": (boolean, True),
        "offload_ufo": (boolean, True),
        "offload_csum": (boolean, True),
    },
)
vsock = struct("VsockConfig", {**PCI, "cid": (u32, REQUIRED), "socket": (path, REQUIRED)})
balloon = struct(
    "BalloonConfig",
    {**PCI, "size": (u64, REQUIRED), "deflate_on_oom": (boolean, False), "free_page_reporting": (boolean, False)},
)
rng = struct("RngConfig", {**PCI, "src": (path, REQUIRED)})
serial = struct("SerialConfig", {"file": (path, None), "mode": (console_mode, REQUIRED), "socket": (path, None)})
console = struct(
    "ConsoleConfig", {"file": (path, None), "mode": (console_mode, REQUIRED), "socket": (path, None), **PCI}
)
debug_console = struct(
    "DebugConsoleConfig", {"file": (path, None), "mode": (console_mode, REQUIRED), "iobase": (u16, None)}
)
payload = struct(
    "PayloadConfig",
    {"firmware": (path, None), "kernel": (path, None), "cmdline": (string, None), "initramfs": (path, None)},
)
topology = struct(
    "CpuTopology",
    {name: (u16, REQUIRED) for name in ("threads_per_core", "cores_per_die", "dies_per_package", "packages")},
)
cpus = struct(
    "CpusConfig",
    {
        "boot_vcpus": (u32, REQUIRED),
        "max_vcpus": (u32, REQUIRED),
        "topology": (topology, None),
        "kvm_hyperv": (boolean, False),
        "max_phys_bits": (u8, 46),
        "affinity": (
            listed(struct("CpuAffinity", {"vcpu": (u32, REQUIRED), "host_cpus": (listed(u32), REQUIRED)})),
            None,
        ),
        "features": (struct("CpuFeatures", {"amx": (boolean, False)}), lambda: {"amx": False}),
        "nested": (boolean, True),
        "core_scheduling": (_one_of("Vm", "Vcpu", "Off"), "Vm"),
        "profile": (string, "Host"),
    },
)
memory = struct(
    "MemoryConfig",
    {
        "size": (u64, REQUIRED),
        "mergeable": (boolean, False),
        "hotplug_method": (_one_of("Acpi", "VirtioMem"), "Acpi"),
        "hotplug_size": (u64, None),
        "hotplugged_size": (u64, None),
        "shared": (boolean, False),
        "hugepages": (boolean, False),
        "hugepage_size": (u64, None),
        "prefault": (boolean, False),
        "reserve": (boolean, False),
        "zones": (listed(dict), None),
        "thp": (boolean, True),
    },
)
platform = struct(
    "PlatformConfig",
    {
        "num_pci_segments": (u16, 1),
        "iommu_segments": (listed(u16), None),
        "iommu_address_width_bits": (u8, 64),
        "system_serial_number": (string, None),
        "system_uuid": (string, None),
        "oem_strings": (listed(string), None),
        "system_manufacturer": (string, None),
        "system_product_name": (string, None),
        "system_version": (string, None),
        "system_family": (string, None),
        "system_sku_number": (string, None),
        "chassis_asset_tag": (string, None),
        "iommufd": (boolean, False),
        "vfio_p2p_dma": (boolean, True),
    },
    aliases={"serial_number": "system_serial_number", "uuid": "system_uuid"},
)
landlock_rule = struct("LandlockConfig", {"path": (path, REQUIRED), "access": (string, REQUIRED)})

# Devices that this VMM knows only to refuse them by name when the VM boots.
NOT_EMULATED = ("generic_vhost_user", "fs", "pmem", "devices", "user_devices", "vdpa", "numa", "pci_segments", "tpm")
_anything = listed(lambda value: value)

vm = struct(
    "VmConfig",
    {
        "cpus": (cpus, lambda: cpus({"boot_vcpus": 1, "max_vcpus": 1})),
        "memory": (memory, lambda: memory({"size": 512 << 20})),
        "payload": (payload, None),
        "rate_limit_groups": (
            listed(struct("RateLimiterGroupConfig", {"id": (string, ""), "rate_limiter_config": (rate_limiter, dict)})),
            None,
        ),
        "disks": (listed(disk), None),
        "net": (listed(net), None),
        "rng": (rng, lambda: rng({"src": "/dev/urandom"})),
        "balloon": (balloon, None),
        **{name: (_anything if name != "tpm" else dict, None) for name in NOT_EMULATED},
        "serial": (serial, lambda: {"mode": "Null"}),
        "console": (console, lambda: console({"mode": "Tty"})),
        "debug_console": (debug_console, lambda: {"mode": "Off", "iobase": 0xE9}),
        "vsock": (vsock, None),
        "pvpanic": (boolean, False),
        "iommu": (boolean, False),
        "watchdog": (boolean, False),
        "rtc": (struct("RtcConfig", PCI), None),
        "platform": (platform, None),
        "landlock_enable": (boolean, False),
        "landlock_rules": (listed(landlock_rule), None),
    },
)

resize = struct(
    "VmResizeData", {name: (u64, None) for name in ("desired_ram", "desired_balloon")} | {"desired_vcpus": (u32, None)}
)
resize_disk = struct("VmResizeDiskData", {"id": (string, REQUIRED), "desired_size": (u64, REQUIRED)})
resize_zone = struct("VmResizeZoneData", {"id": (string, REQUIRED), "desired_ram": (u64, REQUIRED)})
remove_device = struct("VmRemoveDeviceData", {"id": (string, REQUIRED)})
snapshot = struct("VmSnapshotConfig", {"destination_url": (string, REQUIRED)})
restore = struct(
    "RestoreConfig",
    {
        "source_url": (path, REQUIRED),
        "prefault": (boolean, False),
        "memory_restore_mode": (_one_of("Copy", "OnDemand"), "Copy"),
        "resume": (boolean, False),
    },
)
receive_migration = struct(
    "VmReceiveMigrationData",
    {
        "receiver_url": (string, REQUIRED),
        "tls_dir": (path, None),
        "memory_mode": (_one_of("Precopy", "Postcopy"), "Precopy"),
    },
)
send_migration = struct(
    "VmSendMigrationData",
    {
        "destination_url": (string, REQUIRED),
        "local": (boolean, False),
        "downtime_ms": (nonzero(u64, "u64"), 300),
        "timeout_s": (nonzero(u64, "u64"), 3600),
        "timeout_strategy": (_one_of("Cancel", "Ignore"), "Cancel"),
        "connections": (nonzero(u32, "u32"), 1),
        "tls_dir": (path, None),
        "memory_mode": (_one_of("Precopy", "Postcopy"), "Precopy"),
    },
)
