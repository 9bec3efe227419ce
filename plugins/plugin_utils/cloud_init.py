# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The documents that cloud-init reads in a guest, as data. Pure.

They are written as JSON, which cloud-init reads where it reads YAML, so that no value needs quoting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import guest_service

Json = dict[str, Any]


def network_config(lease: Mapping[str, Any], *, dns: list[str] | None = None) -> Json:
    """Return the network config, version 2, for what ch_lease gave.

    The NIC is matched by its MAC: its name differs between images. Without link-local addresses and router
    advertisements, systemd's wait-online does not wait for what never comes.
    """
    nic: Json = {
        "match": {"macaddress": lease["mac"]},
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
        "link-local": [],
        "addresses": [f"{lease['address']}/{lease['prefix']}"],
        "routes": [{"to": "0.0.0.0/0", "via": lease["host_address"]}],
    }
    if lease.get("address6") is not None:
        nic["addresses"].append(f"{lease['address6']}/{lease['prefix6']}")
        nic["routes"].append({"to": "::/0", "via": lease["host_address6"]})
    if dns:
        nic["nameservers"] = {"addresses": list(dns)}
    return {"version": 2, "ethernets": {"uplink": nic}}


def meta_data(vm: Mapping[str, Any]) -> Json:
    """Return the meta data of an inventory entry. A new instance id has cloud-init do its once-only work again."""
    return {
        "instance-id": vm.get("instance_id") or vm["name"],
        "local-hostname": vm.get("hostname") or vm["name"],
    }


def user_data(vm: Mapping[str, Any]) -> Json:
    """Return the cloud-config of an inventory entry; what its ``user_data_extra`` holds is merged in last."""
    config: Json = {
        "hostname": vm.get("hostname") or vm["name"],
        "preserve_hostname": False,
        # Else sudo and others look the name up in DNS, in images that do not have it resolved on the spot.
        "manage_etc_hosts": "localhost",
    }
    for key, name in (("ssh_keys", "ssh_authorized_keys"), ("users", "users"), ("timezone", "timezone")):
        if vm.get(key):
            config[name] = vm[key]
    if vm.get("packages"):
        config |= {"package_update": True, "packages": list(vm["packages"])}
    # What is mounted below another disk's directory comes after it, and finds its own there only when that is mounted.
    data = sorted((disk for disk in vm.get("data") or () if disk.get("mount")), key=lambda disk: str(disk["mount"]))
    mounts = [
        [
            _device(disk),
            disk["mount"],
            disk.get("fstype") or "ext4",
            "defaults,nofail,X-mount.mkdir,x-systemd.growfs",
            "0",
            "2",
        ]
        for disk in data
    ]
    if data:
        # Not "partition: none", which formats a disk that has a file system already on each new instance. Nor a label:
        # its greatest length differs between file systems.
        config["fs_setup"] = [
            {
                "device": _device(disk),
                "filesystem": disk.get("fstype") or "ext4",
                "partition": "auto",
                "overwrite": False,
            }
            for disk in data
        ]
    files, commands = list(vm.get("write_files") or ()), list(vm.get("runcmd") or ())
    if vm.get("service"):
        mounts.append(guest_service.mount(vm))
        files += guest_service.files(vm, [disk["mount"] for disk in data])
        commands += guest_service.commands(vm)
    for name, value in (("mounts", mounts), ("write_files", files), ("runcmd", commands)):
        if value:
            config[name] = value
    config = merged(config, vm.get("user_data_extra") or {})
    users = config.get("users")
    if config.get("ssh_authorized_keys") and isinstance(users, list) and "default" not in users:
        # The keys are the default user's, who is there only where no users are listed, or where it is among them.
        config["users"] = ["default", *users]
    return config


def merged(config: Mapping[str, Any], extra: Mapping[str, Any]) -> Json:
    """Return ``config`` with ``extra`` merged in: dictionaries key by key, lists end to end, else what is extra counts."""
    result = dict(config)
    for key, value in extra.items():
        there = result.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            result[key] = merged(there, value)
        elif isinstance(there, list) and isinstance(value, list):
            result[key] = [*there, *value]
        else:
            result[key] = value
    return result


def _device(disk: Mapping[str, Any]) -> str:
    # ch_disks gives each disk its id as its serial.
    return f"/dev/disk/by-id/virtio-data-{disk['name']}"
