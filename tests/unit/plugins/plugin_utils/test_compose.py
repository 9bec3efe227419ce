# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils import compose
from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils.compose import ComposeError

IMAGE = {"disk": "/i/disk.raw", "kernel": "/i/vmlinuz", "initramfs": "/i/initrd", "firmware": None}
LEASE = {
    "address": "10.213.0.2",
    "host_address": "10.213.0.1",
    "prefix": 30,
    "mac": "02:63:0a:d5:00:02",
    "tap": "chtap0",
    "cid": 3,
    "address6": None,
    "host_address6": None,
    "prefix6": None,
}


def test_defaults_count_whole_keys_at_a_time() -> None:
    defaults = {"image": "small", "cpus": {"boot": 1, "max": 4}}
    assert compose.entries([{"name": "a"}, {"name": "b", "cpus": {"boot": 2}}], defaults) == [
        {"name": "a", "image": "small", "cpus": {"boot": 1, "max": 4}},
        {"name": "b", "image": "small", "cpus": {"boot": 2}},
    ]


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ([{"image": "x"}], "entry 0 of vm_instances has no 'name'"),
        ([{"name": "a"}, {"name": "a"}], "VM 'a' stands twice"),
        ([{"name": "a", "memroy": {}}], "VM 'a': nothing reads the key 'memroy'; did you mean 'memory'?"),
        ([{"name": "a", "zzz": {}}], "nothing reads the key 'zzz'; known are address, "),
        *(
            (
                [{"name": "a", "data": [{"name": "m", "mount": mount}]}],
                f"data disk 'm' is to be mounted on {mount!r}; give",
            )
            for mount in ("mnt", "/", "/a b", "/a/", "/a/../etc", "/.", "/50%", "/a\n", "", 5)
        ),
        (
            [{"name": "a", "data": [{"name": "m", "mount": "/m"}, {"name": "n", "mount": "/m"}]}],
            "the data disk 'n' is to be mounted on '/m', where the data disk 'm' is",
        ),
        (
            [{"name": "a", "service": {"binary": "x"}, "data": [{"name": "m", "mount": "/srv"}]}],
            "the data disk 'm' is to be mounted on '/srv', where the service disk is",
        ),
        *(
            ([{"name": "a", "service": {"binary": "x", "user": user}}], f"service.user is {user!r}; give")
            for user in ("Web", "a b", "", "a\n", "0", 5, "a,uid=0", "x" * 32)
        ),
        ([{"name": "a", "service": {"binary": "x", "group": "www"}}], "service.group is that of service.user"),
        ([{"name": "a", "service": "x"}], "its service is a str"),
    ],
)
def test_entries_that_cannot_be(instances: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ComposeError) as caught:
        compose.entries(instances, {})
    assert message in str(caught.value)


def test_data_disks_may_be_mounted_below_each_other_or_not_at_all() -> None:
    data = [{"name": "a", "mount": "/srv"}, {"name": "b", "mount": "/srv/...b_1-2@x:y+z"}, {"name": "c"}, {"name": "d"}]
    assert compose.entries([{"name": "a", "data": data}], {})[0]["data"] == data


def test_a_vm_that_failed_or_whose_image_did_goes_no_further() -> None:
    wanted = [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}, {"name": "c", "image": "bad"}]
    steps = [{"i": {"failed": False}, "bad": {"failed": True}}, {"a": {}, "b": {"failed": True}}]
    assert [entry["name"] for entry in compose.reached(wanted, steps)] == ["a"]


def test_each_image_is_asked_for_once_and_only_if_it_is_named() -> None:
    known = [{"name": "i"}, {"name": "j"}, {"name": "unused"}]
    wanted = [{"name": "a", "image": "j"}, {"name": "b", "image": "i"}, {"name": "c", "image": "j"}]
    assert compose.images(wanted, known) == [{"name": "j"}, {"name": "i"}]


@pytest.mark.parametrize("entry", [{"name": "a"}, {"name": "a", "image": "nonsense"}])
def test_an_image_that_is_not_known_is_named(entry: dict[str, Any]) -> None:
    with pytest.raises(ComposeError, match="VM 'a': its image is '(None|nonsense)', and vm_images has i, j"):
        compose.images([entry], [{"name": "i"}, {"name": "j"}])


def test_disks() -> None:
    entry = {
        "name": "a",
        "root": {"size": "40GiB"},
        "service": {"binary": "x"},
        "data": [{"name": "main", "size": "1GiB", "mount": "/mnt", "fstype": "xfs"}],
        "memory": {},
    }
    assert compose.disks(entry, IMAGE, {"user_data": "u"}) == {
        "name": "a",
        "image": "/i/disk.raw",
        "boot": {"kernel": "/i/vmlinuz", "initramfs": "/i/initrd"},
        "root": {"size": "40GiB"},
        "cidata": {"user_data": "u"},
        "service": {"binary": "x"},
        "data": [{"name": "main", "size": "1GiB"}],
    }


def test_nft() -> None:
    assert compose.nft({"name": "a", "egress": {"policy": "none"}, "cpus": {}}, LEASE) == {
        "name": "a",
        "egress": {"policy": "none"},
        "tap": "chtap0",
        "mac": "02:63:0a:d5:00:02",
        "address": "10.213.0.2",
    }


def test_vm() -> None:
    entry = {"name": "a", "image": "i", "cmdline": "quiet", "cpus": {"boot": 2}, "tags": ["web"], "egress": {}}
    built = {"boot": {"kernel": "/old/vmlinuz", "initramfs": "/old/initrd"}, "disks": [{"id": "root"}]}
    assert compose.vm(entry, LEASE, built) == {
        "name": "a",
        "state": "running",
        "cpus": {"boot": 2},
        "payload": {"kernel": "/old/vmlinuz", "initramfs": "/old/initrd", "cmdline": "quiet"},
        "disks": [{"id": "root"}],
        "nets": [{"tap": "chtap0", "mac": "02:63:0a:d5:00:02", "host_address": "10.213.0.1", "prefix": 30}],
        "vsock": {"cid": 3},
        "labels": {"address": "10.213.0.2", "mac": "02:63:0a:d5:00:02", "image": "i", "tags": ["web"]},
    }


def test_the_default_command_line_is_for_the_default_image() -> None:
    options = compose.vm({"name": "a", "image": "i"}, LEASE, {"boot": {"kernel": "/i/vmlinuz"}, "disks": []})
    assert options["payload"]["cmdline"] == "root=LABEL=cloudimg-rootfs ro console=ttyS0"


def test_a_firmware_has_no_command_line_and_vsock_can_be_left_out() -> None:
    entry = {"name": "a", "image": "i", "cmdline": "quiet", "vsock": False, "state": "stopped"}
    options = compose.vm(entry, LEASE, {"boot": {"firmware": "/i/fw"}, "disks": []})
    assert (options["payload"], options["state"]) == ({"firmware": "/i/fw"}, "stopped")
    assert "vsock" not in options


def test_more_options_of_a_nic_and_of_disks() -> None:
    entry = {
        "name": "a",
        "image": "i",
        "nic": {"mtu": 9000, "tap": "not-this-one"},
        "disk_options": {"root": {"rate_limit": {"ops": 100}}},
        "balloon": {"size": "64MiB"},
    }
    disks = [{"id": "root", "path": "/r"}, {"id": "cidata", "path": "/c"}]
    options = compose.vm(entry, LEASE, {"boot": {}, "disks": disks})
    assert options["balloon"] == {"size": "64MiB"}
    assert (options["nets"][0]["mtu"], options["nets"][0]["tap"]) == (9000, "chtap0")
    assert options["disks"] == [
        {"id": "root", "path": "/r", "rate_limit": {"ops": 100}},
        {"id": "cidata", "path": "/c"},
    ]
    with pytest.raises(ComposeError, match="VM 'a': disk_options names 'dta'; its disks are root"):
        compose.vm({**entry, "disk_options": {"dta": {}}}, LEASE, {"boot": {}, "disks": [{"id": "root"}]})


def test_whom_a_service_runs_as_is_not_for_its_disk() -> None:
    for service, given in (({"binary": "x", "user": "web", "group": "www"}, {"binary": "x"}), (None, None)):
        assert compose.disks({"name": "a", "service": service}, IMAGE, {})["service"] == given


def test_each_vm_that_is_stopped_has_its_own_grace() -> None:
    known = [{"name": "web", "grace": 120}, {"name": "db"}, {"name": "never", "grace": 0}]
    names = ["web", "db", "never", "of-nobody"]
    assert [vm.get("grace") for vm in compose.stops(names, known, {}, None)] == [120, None, 0, None]
    assert [vm.get("grace") for vm in compose.stops(names, known, {}, 10)] == [120, 10, 0, 10]
    assert [vm.get("grace") for vm in compose.stops(names, known, {"grace": 60}, 10)] == [120, 60, 0, 10]
    assert compose.stops(names, known, {}, None)[1] == {"name": "db"}
