# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils import cloud_init

LEASE = {"mac": "02:63:0a:d5:00:02", "address": "10.213.0.2", "prefix": 30, "host_address": "10.213.0.1"}
LEASE6 = {"address6": "fd00::2", "prefix6": 126, "host_address6": "fd00::1"}


def test_the_nic_is_found_by_its_mac_alone() -> None:
    config = cloud_init.network_config(LEASE)
    (nic,) = config["ethernets"].values()
    assert nic["match"] == {"macaddress": "02:63:0a:d5:00:02"}
    assert "set-name" not in nic
    assert nic["addresses"] == ["10.213.0.2/30"]
    assert nic["routes"] == [{"to": "0.0.0.0/0", "via": "10.213.0.1"}]
    assert "nameservers" not in nic


def test_ipv6_and_name_servers() -> None:
    (nic,) = cloud_init.network_config({**LEASE, **LEASE6}, dns=["192.0.2.53"])["ethernets"].values()
    assert nic["addresses"] == ["10.213.0.2/30", "fd00::2/126"]
    assert nic["routes"][1] == {"to": "::/0", "via": "fd00::1"}
    assert nic["nameservers"] == {"addresses": ["192.0.2.53"]}


def test_meta_data() -> None:
    assert cloud_init.meta_data({"name": "web"}) == {"instance-id": "web", "local-hostname": "web"}
    assert cloud_init.meta_data({"name": "web", "hostname": "www", "instance_id": "2"}) == {
        "instance-id": "2",
        "local-hostname": "www",
    }


def test_a_vm_without_anything_gets_its_name() -> None:
    assert cloud_init.user_data({"name": "web"}) == {
        "hostname": "web",
        "preserve_hostname": False,
        "manage_etc_hosts": "localhost",
    }


@pytest.mark.parametrize(
    ("entry", "users"),
    [
        ({"ssh_keys": ["k"]}, None),
        ({"users": [{"name": "me"}]}, [{"name": "me"}]),
        # The keys are the default user's, so that there must be one.
        ({"ssh_keys": ["k"], "users": [{"name": "me"}]}, ["default", {"name": "me"}]),
        ({"ssh_keys": ["k"], "users": [{"name": "me"}, "default"]}, [{"name": "me"}, "default"]),
        ({"ssh_keys": ["k"], "user_data_extra": {"users": ["me"]}}, ["default", "me"]),
    ],
)
def test_the_default_user_keeps_its_keys(entry: dict[str, Any], users: list[Any] | None) -> None:
    config = cloud_init.user_data({"name": "web", **entry})
    assert config.get("users") == users
    assert config.get("ssh_authorized_keys") == entry.get("ssh_keys")


def test_packages_come_from_fresh_lists() -> None:
    config = cloud_init.user_data({"name": "web", "packages": ["curl"]})
    assert (config["package_update"], config["packages"]) == (True, ["curl"])


def test_a_data_disk_is_formatted_once_and_found_by_its_serial() -> None:
    config = cloud_init.user_data({"name": "web", "data": [{"name": "main", "mount": "/mnt/data"}, {"name": "bare"}]})
    assert config["fs_setup"] == [
        {
            "device": "/dev/disk/by-id/virtio-data-main",
            "filesystem": "ext4",
            "partition": "auto",
            "overwrite": False,
        }
    ]
    assert [mount[:3] for mount in config["mounts"]] == [["/dev/disk/by-id/virtio-data-main", "/mnt/data", "ext4"]]


def test_a_directory_is_mounted_before_what_is_below_it() -> None:
    data = [{"name": "logs", "mount": "/var/app/logs"}, {"name": "main", "mount": "/var/app"}]
    mounts = cloud_init.user_data({"name": "web", "data": data})["mounts"]
    assert [mount[1] for mount in mounts] == ["/var/app", "/var/app/logs"]
    assert all("X-mount.mkdir" in mount[3].split(",") for mount in mounts)


def test_the_service_is_a_unit_that_waits_for_its_disks() -> None:
    data = [{"name": "main", "mount": "/mnt/data"}]
    config = cloud_init.user_data({"name": "web", "service": {"binary": "x"}, "data": data, "runcmd": ["first"]})
    assert config["mounts"][1][:3] == ["/dev/disk/by-label/SERVICEDISK", "/srv", "vfat"]
    (unit,) = config["write_files"]
    assert unit["path"] == "/etc/systemd/system/microvm-service.service"
    assert "\nExecStart=/bin/sh /srv/launch\n" in unit["content"]
    assert "\nRequiresMountsFor=/srv /mnt/data\n" in unit["content"]
    assert config["runcmd"] == [
        "first",
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "--now", "microvm-service.service"],
    ]


def test_keys_on_the_service_disk_are_for_root_alone() -> None:
    (mount,) = cloud_init.user_data({"name": "web", "service": {"binary": "x"}})["mounts"]
    options = mount[3].split(",")
    assert {"ro", "fmask=0277", "dmask=0277"} <= set(options)
    assert not any(option.startswith(("uid=", "gid=", "umask=")) for option in options)


@pytest.mark.parametrize(("group", "of"), [({}, "web"), ({"group": "www"}, "www")])
def test_a_service_may_run_as_a_user_of_its_own(group: dict[str, str], of: str) -> None:
    service = {"binary": "x", "user": "web", **group}
    config = cloud_init.user_data({"name": "a", "service": service, "data": [{"name": "main", "mount": "/mnt/data"}]})
    options = config["mounts"][1][3].split(",")
    # Made after cloud-init has mounted what is not "noauto".
    assert {"ro", "noauto", "uid=web", f"gid={of}", "fmask=0277", "dmask=0277"} <= set(options)
    unit, users = config["write_files"]
    lines = unit["content"].splitlines()
    assert {"User=web", f"Group={of}", "NoNewPrivileges=yes", f"ExecStartPre=+chown web:{of} /mnt/data"} <= set(lines)
    assert users["content"].splitlines()[1].startswith(f"u web -:{of} ")
    assert config["runcmd"][0] == ["systemd-sysusers", users["path"]]


def test_a_service_is_roots_where_it_has_no_user() -> None:
    (unit,) = cloud_init.user_data({"name": "web", "service": {"binary": "x"}})["write_files"]
    assert not {"User", "ExecStartPre", "NoNewPrivileges"} & {
        line.split("=")[0] for line in unit["content"].splitlines()
    }


@pytest.mark.parametrize(("grace", "seconds"), [(None, 20), (120, 110), (10, 1), (0, 1)])
def test_a_service_that_does_not_stop_leaves_time_to_unmount(grace: int | None, seconds: int) -> None:
    (unit,) = cloud_init.user_data({"name": "web", "service": {"binary": "x"}, "grace": grace})["write_files"]
    assert f"\nTimeoutStopSec={seconds}\n" in unit["content"]


def test_extra_user_data_is_merged_in() -> None:
    vm = {
        "name": "web",
        "runcmd": [["one"]],
        "user_data_extra": {"runcmd": [["two"]], "hostname": "other", "ntp": {"enabled": True}},
    }
    config = cloud_init.user_data(vm)
    assert config["runcmd"] == [["one"], ["two"]]
    assert config["hostname"] == "other"
    assert config["ntp"] == {"enabled": True}


def test_merging_goes_down_into_dictionaries() -> None:
    assert cloud_init.merged({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2], "d": 3}}) == {
        "a": {"b": 1, "c": [1, 2], "d": 3}
    }
