# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

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
    assert cloud_init.user_data({"name": "web"}) == {"hostname": "web", "preserve_hostname": False}


def test_a_data_disk_is_formatted_once_and_found_by_its_serial() -> None:
    config = cloud_init.user_data({"name": "web", "data": [{"name": "main", "mount": "/mnt/data"}, {"name": "bare"}]})
    assert config["fs_setup"] == [
        {
            "device": "/dev/disk/by-id/virtio-data-main",
            "filesystem": "ext4",
            "label": "main",
            "partition": "auto",
            "overwrite": False,
        }
    ]
    assert [mount[:3] for mount in config["mounts"]] == [["/dev/disk/by-id/virtio-data-main", "/mnt/data", "ext4"]]


def test_the_service_is_a_unit_that_waits_for_its_disks() -> None:
    config = cloud_init.user_data({"name": "web", "service": {}, "data": []} | {"service": {"binary": "x"}})
    assert config["mounts"][0][:4] == ["LABEL=SERVICEDISK", "/srv", "vfat", "ro,nofail,fmask=0222,dmask=0222"]
    (unit,) = config["write_files"]
    assert unit["path"] == "/etc/systemd/system/microvm-service.service"
    assert "\nExecStart=/bin/sh /srv/launch\n" in unit["content"]
    assert config["runcmd"][-1] == ["systemctl", "enable", "--now", "microvm-service.service"]


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
