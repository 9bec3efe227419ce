# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How cloud-init has a guest mount its service disk and run what is on it. Pure.

A FAT disk holds no modes. The mount says whose the files are: they are the service's user's, who can read and execute
all of them, and beside root nobody else anything. The user may have to be made first, which cloud-init does after it
has mounted; so a disk that is a user's is mounted when the service needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..module_utils.vm_config import DEFAULT_GRACE

SERVICE_UNIT = "microvm-service.service"
# What a guest needs to power off beside stopping the service: 2 s emulated, and 7 s where its machine is busy (molecule).
UNMOUNT_SECONDS = 10
_SYSUSERS = "/etc/sysusers.d/microvm-service.conf"


def mount(vm: Mapping[str, Any]) -> list[str]:
    """Return the entry of cloud-init's ``mounts`` for the service disk of an inventory entry."""
    user, group = _who(vm)
    whose = f"noauto,uid={user},gid={group}" if user else "nofail"
    # Not "LABEL=": cloud-init's documentation of mounts says that it skips what is no block device.
    options = f"ro,{whose},nosuid,nodev,fmask=0277,dmask=0277"
    return ["/dev/disk/by-label/SERVICEDISK", "/srv", "vfat", options, "0", "0"]


def files(vm: Mapping[str, Any], mounts: Sequence[str]) -> list[dict[str, str]]:
    """Return the entries of ``write_files`` for a service that has its data disks on ``mounts``."""
    user, group = _who(vm)
    written = {f"/etc/systemd/system/{SERVICE_UNIT}": _unit(user, group, mounts, grace=vm.get("grace"))}
    if user:
        # sysusers.d(5). Users that are there already stay as they are.
        written[_SYSUSERS] = f'g {group} -\nu {user} -:{group} "The service"\n'
    return [
        {"path": path, "content": content, "owner": "root:root", "permissions": "0644"}
        for path, content in written.items()
    ]


def commands(vm: Mapping[str, Any]) -> list[list[str]]:
    """Return the entries of ``runcmd`` that bring the service up."""
    user, _group = _who(vm)
    reload, start = ["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", SERVICE_UNIT]
    if not user:
        return [reload, start]
    # A disk that an earlier instance of the guest has mounted may be another's.
    own = f'test "$(stat -c %U /srv)" = {user} || systemctl restart srv.mount'
    return [["systemd-sysusers", _SYSUSERS], reload, ["sh", "-c", own], start]


def _who(vm: Mapping[str, Any]) -> tuple[str, str]:
    """Return the user and the group that the service runs as; empty for root."""
    user = vm["service"].get("user") or ""
    return user, vm["service"].get("group") or user


def _unit(user: str, group: str, mounts: Sequence[str], *, grace: int | None) -> str:
    # systemd kills what does not end before the VM is shut down without the guest's doing, and still unmounts then.
    stop_seconds = max(1, (DEFAULT_GRACE if grace is None else grace) - UNMOUNT_SECONDS)
    unprivileged = [
        f"User={user}",
        f"Group={group}",
        # What is behind a forward is mostly a port below 1024.
        "AmbientCapabilities=CAP_NET_BIND_SERVICE",
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
        "NoNewPrivileges=yes",
        # A file system that has just been made is root's.
        *(f"ExecStartPre=+chown {user}:{group} {directory}" for directory in mounts),
    ]
    return "\n".join(
        [
            "[Unit]",
            "Description=The service that this virtual machine is there for",
            "Wants=network-online.target",
            "After=network-online.target",
            f"RequiresMountsFor={' '.join(['/srv', *mounts])}",
            # However often it fails, it is started again.
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            *(unprivileged if user else ()),
            "ExecStart=/bin/sh /srv/launch",
            "Restart=on-failure",
            "RestartSec=1",
            f"TimeoutStopSec={stop_seconds}",
            "StandardOutput=journal+console",
            "StandardError=journal+console",
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
    )
