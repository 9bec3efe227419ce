# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is checked of a VmConfig when the VM boots or gets a device (vmm/src/config.rs)."""

from __future__ import annotations

from typing import Any

from .errors import Refused

Json = dict[str, Any]


def _invalid(cause: str, *more: str) -> Refused:
    return Refused("Failed to validate config", cause, *more)


def devices(config: Json) -> list[Json]:
    """List what may carry an id of its own, in the order in which ids are checked."""
    single = [config[name] for name in ("rng", "console", "balloon", "vsock") if name in config]
    return [*config.get("disks", []), *config.get("net", []), *single]


def check_new_id(config: Json, device: Json) -> None:
    """Refuse a device whose id another one of the configuration has."""
    _check_ids([*devices(config), device])


def _check_ids(items: list[Json]) -> None:
    seen: set[str] = set()
    for item in items:
        name = item.get("id")
        if name is None:
            continue
        if name.startswith("__"):
            raise _invalid(f"Identifier {name} is not invalid")  # its very words
        if name in seen:
            raise _invalid(f"Identifier {name} is not unique")
        seen.add(name)


def check_disk(config: Json, item: Json) -> None:
    """Refuse a disk that the configuration does not allow."""
    if item["vhost_user"]:
        raise not_shared() if not _shared(config) else _invalid("No socket provided when using vhost-user")
    if item["num_queues"] > config["cpus"]["boot_vcpus"]:
        raise _invalid(
            f"Queue count ({item['num_queues']}) must not exceed boot vCPUs ({config['cpus']['boot_vcpus']})"
        )
    if item["queue_size"] & (item["queue_size"] - 1) or not 0 < item["queue_size"] <= 32768:
        raise _invalid(f"Queue size must be a power of 2 no greater than 32768: {item['queue_size']}")
    if len(item.get("serial", "").encode()) > 20:
        raise _invalid(
            f"Block device serial length ({len(item['serial'].encode())}) exceeds maximum allowed length (20)"
        )


def check_net(config: Json, item: Json) -> None:
    """Refuse a network device that the configuration does not allow."""
    if item["vhost_user"]:
        raise not_shared() if not _shared(config) else _invalid("No socket provided when using vhost-user")
    if item["num_queues"] < 2:
        raise _invalid(f"Number of queues ({item['num_queues']}) to virtio_net should be higher than 2")
    if item["num_queues"] // 2 > config["cpus"]["boot_vcpus"]:
        raise _invalid(
            f"Queue count ({item['num_queues']}) must not exceed boot vCPUs ({config['cpus']['boot_vcpus']})"
        )
    if item.get("mtu", 1280) < 1280:
        raise _invalid(f"Provided MTU {item['mtu']} is lower than 1280 (expected by VIRTIO specification)")
    if not item["offload_csum"] and (item["offload_tso"] or item["offload_ufo"]):
        raise _invalid('"offload_tso" and "offload_ufo" depend on "offload_csum"')
    if "mask" in item and "ip" not in item:
        raise _invalid("Mask provided without an IP")
    if "ip" in item and "mask" not in item:
        raise _invalid("IP provided without a mask")


def _shared(config: Json) -> bool:
    return bool(config["memory"]["shared"] or config["memory"]["hugepages"])


def not_shared() -> Refused:
    """Say that vhost-user needs shared memory."""
    return _invalid("Using vhost-user requires using shared memory or huge pages")


def check(config: Json) -> None:
    """Refuse a configuration that cannot boot."""
    boot = config.get("payload", {})
    if "firmware" in boot and "kernel" in boot:
        raise _invalid(
            "Payload configuration is not bootable",
            "Specifying a kernel is not supported when a firmware is provided",
        )
    if not {"firmware", "kernel"} & boot.keys():
        raise _invalid("Payload configuration is not bootable", "No bootitem provided: neither firmware nor kernel")
    for name in ("console", "serial"):
        if config[name]["mode"] == "File" and "file" not in config[name]:
            raise _invalid("Path missing when using file console mode")
        if config[name]["mode"] == "Socket" and "socket" not in config[name]:
            raise _invalid("Path missing when using socket console mode")
    if config["cpus"]["max_vcpus"] < config["cpus"]["boot_vcpus"]:
        raise _invalid(
            f"Max CPUs ({config['cpus']['max_vcpus']}) lower than boot CPUs ({config['cpus']['boot_vcpus']})"
        )
    for item in config.get("disks", []):
        check_disk(config, item)
    for item in config.get("net", []):
        check_net(config, item)
    if "topology" in config["cpus"]:
        product = 1
        for part in config["cpus"]["topology"].values():
            product *= part
        if product != config["cpus"]["max_vcpus"]:
            raise _invalid("Product of CPU topology parts does not match maximum vCPU")
    if config["memory"]["shared"] and config["memory"]["mergeable"]:
        raise _invalid("Invalid to set both 'mergeable' and 'shared' for memory")
    if "vsock" in config and config["vsock"]["cid"] in (0, 1, 2, 0xFFFFFFFF):
        raise _invalid(f"{config['vsock']['cid']} is a special VSOCK CID")
    if "balloon" in config and config["balloon"]["size"] >= config["memory"]["size"]:
        raise _invalid(f"Balloon size ({config['balloon']['size']}) greater than RAM ({config['memory']['size']})")
    _check_ids(devices(config))
