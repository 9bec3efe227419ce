# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_config
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.tap import Tap
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_config import Spec
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths

PATHS = Paths.of("web", state_dir=Path("/s"), run_dir=Path("/r"))
MIB = 1 << 20


def parse(**options: Any) -> Spec:
    return vm_config.parse({"name": "web", "payload": {"kernel": "/k"}, **options}, PATHS)


def test_a_name_and_a_kernel_are_enough() -> None:
    spec = parse()
    assert spec.config == {
        "payload": {"kernel": "/k"},
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 512 * MIB},
        "disks": [],
        "net": [],
        "rng": {"src": "/dev/urandom"},
        "watchdog": False,
        "serial": {"mode": "File", "file": "/s/vms/web/serial.log"},
        "console": {"mode": "Off"},
    }
    assert (spec.taps, spec.vmm, spec.sizes) == ((), "cloud-hypervisor", {})


def test_sizes_rates_and_choices_have_their_units() -> None:
    config = parse(
        cpus={"boot": 2, "max": 4, "core_scheduling": "vcpu", "profile": "host"},
        memory={"size": "2GiB", "hotplug_size": "1G", "hotplug_method": "virtio_mem", "hotplugged_size": "512M"},
        balloon={"size": "64MiB"},
        disks=[
            {
                "path": "/d",
                "rate_limit": {"bandwidth": "10MiB", "bandwidth_burst": "1GiB", "ops": 500, "interval": 100},
                "lock_granularity": "full",
            }
        ],
    ).config
    assert config["cpus"] == {"boot_vcpus": 2, "max_vcpus": 4, "core_scheduling": "Vcpu", "profile": "Host"}
    assert config["memory"] == {
        "size": 2 << 30,
        "hotplug_size": 1 << 30,
        "hotplug_method": "VirtioMem",
        "hotplugged_size": 512 * MIB,
    }
    assert config["balloon"] == {"size": 64 * MIB}
    (disk,) = config["disks"]
    assert disk["rate_limiter_config"] == {
        "bandwidth": {"size": MIB, "refill_time": 100, "one_time_burst": 1 << 30},
        "ops": {"size": 50, "refill_time": 100},
    }
    assert disk["lock_granularity"] == "Full"


def test_a_disk_s_format_is_never_left_to_its_content() -> None:
    disks = [{"path": "/a"}, {"path": "/b.qcow2"}, {"path": "/c.vhdx"}, {"path": "/d.qcow2", "image_type": "raw"}]
    assert [
        (disk["id"], disk["image_type"], disk.get("backing_files")) for disk in parse(disks=disks).config["disks"]
    ] == [
        ("disk0", "Raw", None),
        ("disk1", "Qcow2", False),
        ("disk2", "Vhdx", None),
        ("disk3", "Raw", None),
    ]


def test_what_the_vmm_is_not_told() -> None:
    spec = parse(
        disks=[{"id": "data", "path": "/a", "size": "2GiB"}],
        nets=[
            {"tap": "t0", "host_address": "10.0.0.1", "prefix": 30, "host_address6": "fd00::1", "prefix6": 64},
            {"tap": "t1", "num_queues": 4, "mtu": 9000, "host_mac": "02:00:00:00:00:AA"},
        ],
        cpus={"boot": 2},
    )
    assert spec.sizes == {"data": 2 << 30}
    assert spec.taps == (
        Tap("t0", ("10.0.0.1/30", "fd00::1/64")),
        Tap("t1", multi_queue=True, mtu=9000, mac="02:00:00:00:00:aa"),
    )
    assert spec.config["net"] == [{"tap": "t0", "id": "net0"}, {"tap": "t1", "num_queues": 4, "id": "net1"}]
    assert "size" not in spec.config["disks"][0]


def test_devices_behind_sockets() -> None:
    spec = parse(
        memory={"shared": True},
        disks=[{"vhost_socket": "/s/d"}],
        nets=[{"vhost_socket": "/s/n", "vhost_mode": "server"}],
        fs=[{"tag": "t", "socket": "/s/f"}],
        vsock={"cid": 3},
    )
    assert spec.config["disks"] == [{"vhost_socket": "/s/d", "vhost_user": True, "id": "disk0"}]
    assert spec.config["net"] == [{"vhost_socket": "/s/n", "vhost_mode": "Server", "vhost_user": True, "id": "net0"}]
    assert spec.config["fs"] == [{"tag": "t", "socket": "/s/f", "id": "fs0", "num_queues": 1, "queue_size": 1024}]
    assert spec.config["vsock"] == {"cid": 3, "socket": "/r/web/vsock.sock"}
    assert spec.taps == ()


def test_the_files_that_the_vmm_opens() -> None:
    spec = parse(
        payload={"kernel": "/k", "initramfs": "/i", "cmdline": "quiet"},
        disks=[{"path": "/d"}],
        pmem=[{"id": "p", "file": "/p"}],
    )
    assert spec.files() == {"payload.kernel": "/k", "payload.initramfs": "/i", "disks.disk0": "/d", "pmem.p": "/p"}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"payload": {}}, "option 'payload': give either a kernel, a firmware or an igvm"),
    ({"payload": {"kernel": "/k", "firmware": "/f"}}, "option 'payload': give either"),
    ({"payload": {"firmware": "/f", "cmdline": "x"}}, "option 'payload': a firmware finds"),
    ({"cpus": {"boot": 2, "max": 1}}, "option 'cpus': boot is 2 and max is 1"),
    ({"cpus": {"boot": 0}}, "option 'cpus.boot': 0 is not between 1"),
    (
        {
            "cpus": {
                "max": 3,
                "topology": {"threads_per_core": 1, "cores_per_die": 2, "dies_per_package": 1, "packages": 1},
            }
        },
        "option 'cpus.topology': makes 2 vCPUs, and cpus.max is 3",
    ),
    ({"memory": {"size": "much"}}, "option 'memory.size': 'much' is not a size"),
    ({"memory": {"size": 4095}}, "option 'memory.size': 4095 bytes are asked for"),
    ({"memory": {"size": "1G", "zones": [{"id": "a", "size": "1G"}]}}, "option 'memory.size': is the zones' sum"),
    ({"memory": {"zones": [{"id": "a", "size": "1G", "hotplug_size": "1G"}]}}, "option 'memory.zones.a.hotplug_size'"),
    ({"memory": {"zones": [{"id": "a", "size": "1G"}] * 2}}, "option 'memory.zones': the id 'a' stands twice"),
    ({"memory": {"zones": [{"size": "1G"}]}}, "option 'memory.zones.id': is missing"),
    ({"memory": {"hugepage_size": "1G"}}, "option 'memory.hugepage_size': counts with hugepages only"),
    ({"memory": {"shared": True, "mergeable": True}}, "option 'memory.mergeable': what is shared is never merged"),
    ({"memory": {"hotplugged_size": "1G"}}, "option 'memory.hotplugged_size': is more than hotplug_size"),
    ({"disks": [{"image_type": "raw"}]}, "option 'disks.path': the disk disk0 takes either a path or a vhost_socket"),
    ({"disks": [{"path": "/a"}, {"path": "/a"}]}, "option 'disks': the path '/a' stands twice"),
    ({"disks": [{"path": "/a", "image_type": "iso"}]}, "option 'disks.image_type': 'iso' is none of raw, qcow2"),
    ({"disks": [{"path": "/a", "serial": "s" * 21}]}, "option 'disks.serial'"),
    ({"disks": [{"path": "/a", "num_queues": 2}]}, "option 'disks.num_queues': 2 are more than cpus.boot, 1"),
    ({"disks": [{"path": "/a", "queue_size": 100}]}, "option 'disks.queue_size': 100 is no power of 2"),
    ({"disks": [{"path": "/a", "rate_limit_group": "g"}]}, "option 'disks.rate_limit_group': 'g' is none of"),
    ({"disks": [{"path": "/a", "rate_limit": {}}]}, "option 'disks.rate_limit': give bandwidth, ops or both"),
    ({"disks": [{"path": "/a", "rate_limit": {"ops_burst": 1}}]}, "option 'disks.rate_limit.ops_burst': a burst"),
    (
        {"disks": [{"path": "/a", "rate_limit": {"ops": 1, "interval": 10}}]},
        "option 'disks.rate_limit.ops': 1 each second",
    ),
    ({"disks": [{"vhost_socket": "/a"}]}, "option 'disks.vhost_socket': takes memory.shared"),
    ({"disks": [{"path": "/a", "id": "__x"}]}, "option 'id': the id '__x' begins with two underscores"),
    ({"disks": [{"path": "/a", "id": "../x"}]}, "option 'id': the id '../x' cannot name a file"),
    ({"disks": [{"path": "/a", "id": "x"}], "nets": [{"tap": "t", "id": "x"}]}, "the id 'x' stands twice"),
    ({"nets": [{}]}, "option 'nets.tap': the NIC net0 takes either a tap or a vhost_socket"),
    ({"nets": [{"tap": "t"}, {"tap": "t"}]}, "option 'nets': the TAP 't' stands twice"),
    ({"nets": [{"tap": "t" * 16}]}, "option 'nets.tap'"),
    ({"nets": [{"tap": "t", "mtu": 1000}]}, "option 'nets.mtu': 1000 is not between 1280 and 65535"),
    ({"nets": [{"tap": "t", "num_queues": 4}]}, "option 'nets.num_queues': 4 are not two for each of at most 1 vCPUs"),
    ({"nets": [{"tap": "t", "offload_csum": False}]}, "option 'nets.offload_csum'"),
    ({"nets": [{"tap": "t", "host_address": "10.0.0.1"}]}, "option 'nets.host_address'"),
    ({"fs": [{"tag": "t", "socket": "/s"}]}, "option 'fs': takes memory.shared: true, or huge pages"),
    ({"fs": [{"socket": "/s"}]}, "option 'fs.tag': is missing"),
    ({"console": {"mode": "file"}}, "option 'console.file': is missing for the mode file"),
    ({"console": {"mode": "socket"}}, "option 'console.mode': 'socket' is none of"),
    ({"vsock": {"cid": 2}}, "option 'vsock.cid': 2 is not a guest's context id"),
    ({"vsock": {}}, "option 'vsock.cid'"),
    ({"balloon": {"size": "512MiB"}}, "option 'balloon.size': is as large as the memory"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _options, message in REFUSED])
def test_what_no_vmm_could_be_told_is_refused_by_its_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MicrovmError) as caught:
        parse(**options)
    assert message in str(caught.value)
