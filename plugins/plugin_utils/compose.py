# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From an inventory entry, and what the steps before reached, to the options of the next step's module.

An entry holds the options of all modules side by side, each under its module's own name for it. What a module needs
beside them, such as the addresses that ch_lease gave or the paths that ch_disks made, comes from the earlier results.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

Entry = Mapping[str, Any]
Facts = Mapping[str, Any]

# The keys of an entry that are options of a module, passed on as they are.
OPTIONS = {
    "ch_lease": ("pool", "pool6", "tap_prefix", "address", "mac"),
    "ch_disks": ("root",),
    "ch_nft": ("groups", "egress", "forwards", "host_services", "new_connections"),
    "ch_vm": (
        "cpus",
        "memory",
        "serial",
        "console",
        "rng",
        "watchdog",
        "platform",
        "vmm",
        "apply",
        "replug",
        "grace",
        "boot_timeout",
        "wait_for",
        "supervisor",
        "restart",
        "restart_limit",
        "limits",
        "rate_limit_groups",
        "fs",
        "pmem",
        "devices",
        "user_devices",
        "vdpa",
        "generic_vhost_user",
        "debug_console",
        "rtc",
        "balloon",
        "pvpanic",
        "tpm",
        "iommu",
        "numa",
        "pci_segments",
        "sgx_epc",
        "landlock_enable",
        "landlock_rules",
    ),
}
# The keys that the role reads itself, to compose options or the cloud-init documents.
ROLE_KEYS = (
    "name",
    "state",
    "image",
    "cmdline",
    "service",
    "data",
    "vsock",
    "nic",
    "disk_options",
    "hostname",
    "instance_id",
    "dns",
    "ssh_keys",
    "users",
    "timezone",
    "packages",
    "write_files",
    "runcmd",
    "user_data_extra",
    "tags",
    "anti_affinity",
    "hosts",
    "user_data_template",
    "meta_data_template",
    "network_config_template",
)
KNOWN_KEYS = frozenset(ROLE_KEYS).union(*OPTIONS.values())
# What neither fstab nor a unit's RequiresMountsFor= takes for more than a path.
_MOUNT = re.compile(r"(?:/(?!\.\.?(?:/|$))[\w.@:+-]+)+", re.ASCII)
# The keys of an entry's service that say whom it runs as in the guest, and what systemd's sysusers takes for a name.
_SERVICE_USER = ("user", "group")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}", re.ASCII)
# For the official cloud images of Ubuntu, of which the default image is one.
DEFAULT_CMDLINE = "root=LABEL=cloudimg-rootfs ro console=ttyS0"


class ComposeError(Exception):
    """An entry that no module could be asked for."""


def entries(instances: Iterable[Entry], defaults: Entry) -> list[dict[str, Any]]:
    """Return the entries with their defaults filled in, whole keys at a time.

    Raises ComposeError for an entry without a name, a name that comes twice, a key that nothing reads, or data disks that
    cannot be mounted where they are to be.
    """
    filled: list[dict[str, Any]] = []
    names: set[str] = set()
    for position, instance in enumerate(instances):
        name = instance.get("name")
        if not name:
            raise ComposeError(f"entry {position} of vm_instances has no 'name'")
        if name in names:
            raise ComposeError(f"VM '{name}' stands twice in vm_instances; a name is one VM")
        names.add(name)
        entry = {**defaults, **instance}
        for key in entry:
            if key not in KNOWN_KEYS:
                close = difflib.get_close_matches(str(key), KNOWN_KEYS, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(sorted(KNOWN_KEYS))}"
                raise ComposeError(f"VM '{name}': nothing reads the key '{key}'; {hint}")
        _check_mounts(entry)
        _check_service_user(entry)
        filled.append(entry)
    return filled


def _check_mounts(entry: Entry) -> None:
    taken = {"/srv": "the service disk"} if entry.get("service") else {}
    for disk in entry.get("data") or ():
        mount = disk.get("mount")
        if mount is None:
            continue
        where = f"VM '{entry['name']}': the data disk '{disk.get('name')}' is to be mounted on {mount!r}"
        if not isinstance(mount, str) or not _MOUNT.fullmatch(mount):
            raise ComposeError(f"{where}; give an absolute path of letters, digits and '._@:+-', without '..'")
        if mount in taken:
            raise ComposeError(f"{where}, where {taken[mount]} is; give each a directory of its own")
        taken[mount] = f"the data disk '{disk.get('name')}'"


def _check_service_user(entry: Entry) -> None:
    service = entry.get("service") or {}
    if not isinstance(service, Mapping):
        raise ComposeError(f"VM '{entry['name']}': its service is a {type(service).__name__}; give a dictionary")
    for key in _SERVICE_USER:
        name = service.get(key)
        if name is not None and not (isinstance(name, str) and _USER.fullmatch(name)):
            raise ComposeError(
                f"VM '{entry['name']}': service.{key} is {name!r}; give a name of lower-case letters, digits, '_' and '-', "
                "which begins with a letter or '_'"
            )
    if service.get("group") and not service.get("user"):
        raise ComposeError(f"VM '{entry['name']}': service.group is that of service.user, which is not given")


def reached(wanted: Iterable[Entry], steps: Iterable[Mapping[str, Facts]]) -> list[Entry]:
    """Return the entries that came through all the steps so far: none has failed for them.

    A step has an outcome for each VM, or for each image, which counts for the VMs that begin with it.
    """
    passed = list(steps)
    return [
        entry
        for entry in wanted
        if not any(
            step[key].get("failed")
            for step in passed
            for key in (entry["name"], str(entry.get("image")))
            if key in step
        )
    ]


def images(wanted: Iterable[Entry], known: Iterable[Entry]) -> list[Entry]:
    """Return what ch_image is asked for: each image of ``known`` that an entry names, once.

    Raises ComposeError for an entry that names none, or one that is not known.
    """
    by_name = {image["name"]: image for image in known}
    named: dict[str, Entry] = {}
    for entry in wanted:
        name = str(entry.get("image"))
        if name not in by_name:
            raise ComposeError(
                f"VM '{entry['name']}': its image is '{name}', and vm_images has {', '.join(sorted(by_name)) or 'none'}"
            )
        named[name] = by_name[name]
    return list(named.values())


def stops(
    names: Iterable[str], known: Iterable[Entry], defaults: Entry, grace: int | str | None
) -> list[dict[str, Any]]:
    """Return the items of ch_vm for VMs that are stopped, which it knows by their names.

    What counts is an entry's own ``grace``, then ``grace``, and where there is neither, what is on record.
    """
    own = {entry["name"]: {**defaults, **entry}.get("grace") for entry in known}
    graces = {name: grace if own.get(name) is None else own[name] for name in names}
    return [{"name": name, **({} if seconds is None else {"grace": seconds})} for name, seconds in graces.items()]


def _own(module: str, entry: Entry) -> dict[str, Any]:
    return {"name": entry["name"], **{key: entry[key] for key in OPTIONS[module] if key in entry}}


def lease(entry: Entry) -> dict[str, Any]:
    """Return the options of ch_lease."""
    return _own("ch_lease", entry)


def disks(entry: Entry, image: Facts, cidata: Facts) -> dict[str, Any]:
    """Return the options of ch_disks: the image's root disk, the rendered documents, and the entry's own disks."""
    boot = {key: image[key] for key in ("kernel", "initramfs", "firmware") if image.get(key)}
    options = {**_own("ch_disks", entry), "image": image["disk"], "boot": boot, "cidata": dict(cidata)}
    if "service" in entry:
        # The user is for cloud-init.
        service = entry["service"]
        options["service"] = service and {key: service[key] for key in service if key not in _SERVICE_USER}
    if "data" in entry:
        # mount and fstype are for cloud-init.
        options["data"] = [
            {key: disk[key] for key in ("name", "size", "format") if key in disk} for disk in entry["data"]
        ]
    return options


def nft(entry: Entry, leased: Facts) -> dict[str, Any]:
    """Return the options of ch_nft: the entry's policy for the addresses that were leased."""
    leases = ("tap", "mac", "address", "address6", "subnet", "subnet6")
    addresses = {key: leased[key] for key in leases if leased.get(key) is not None}
    return {**_own("ch_nft", entry), **addresses}


def _disks_with(entry: Entry, built: Iterable[Facts]) -> list[Facts]:
    """Return the disks with the entry's own options for them. Raises ComposeError where it names one that is not built."""
    more = entry.get("disk_options") or {}
    there = [str(disk["id"]) for disk in built]
    for name in more:
        if name not in there:
            raise ComposeError(f"VM '{entry['name']}': disk_options names '{name}'; its disks are {', '.join(there)}")
    return [{**disk, **more.get(disk["id"], {})} for disk in built]


def vm(entry: Entry, leased: Facts, built: Facts) -> dict[str, Any]:
    """Return the options of ch_vm: what the earlier steps made, put together to one machine."""
    payload = dict(built["boot"])
    if "kernel" in payload:
        payload["cmdline"] = entry.get("cmdline", DEFAULT_CMDLINE)
    net = {
        key: leased[key]
        for key in ("tap", "mac", "host_address", "prefix", "host_address6", "prefix6")
        if leased.get(key) is not None
    }
    options = {
        **_own("ch_vm", entry),
        "state": entry.get("state", "running"),
        "payload": payload,
        "disks": _disks_with(entry, built["disks"]),
        "nets": [{**(entry.get("nic") or {}), **net}],
    }
    if entry.get("vsock", True):
        options["vsock"] = {"cid": leased["cid"]}
    # What status and the inventory plugin tell of a VM, and ch_vm has no use for.
    told = {key: leased[key] for key in ("address", "address6", "mac") if leased.get(key) is not None}
    options["labels"] = {**told, "image": entry["image"], "tags": list(entry.get("tags") or ())}
    return options
