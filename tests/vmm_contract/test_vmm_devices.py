# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks, hot-plug, vCPUs, memory, balloon and counters."""

from __future__ import annotations

import re

import pytest
from vmm_process import MIB, Vmm, refused

BDF = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def disks(vmm: Vmm) -> list[str]:
    """List the ids of the VM's disks."""
    return [disk.get("id") for disk in vmm.client.info()["config"].get("disks", [])]


def test_defaults_are_filled_in(vmm: Vmm) -> None:
    a, b = vmm.image("a"), vmm.image("b")
    platform = {"serial_number": "s", "uuid": "9d3b3eb4-0c9f-4d2c-8d6c-4f3f6d0c1f61", "oem_strings": ["x"]}
    vmm.client.create(vmm.config(disks=[{"path": a}, {"path": b, "id": "mine"}], net=[{}], platform=platform))
    config = vmm.client.info()["config"]
    assert [disk.get("id") for disk in config["disks"]] == [None, "mine"], "ids are given at boot"
    assert config["disks"][0] == {
        "path": a,
        "image_type": "Unknown",
        "readonly": False,
        "direct": False,
        "num_queues": 1,
        "queue_size": 128,
        "vhost_user": False,
        "pci_segment": 0,
        "disable_io_uring": False,
        "disable_aio": False,
        "backing_files": False,
        "sparse": True,
        "lock_granularity": "ByteRange",
    }
    (net,) = config["net"]
    assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", net.pop("mac"))
    assert net == {
        "num_queues": 2,
        "queue_size": 256,
        "vhost_user": False,
        "vhost_mode": "Client",
        "pci_segment": 0,
        "offload_tso": True,
        "offload_ufo": True,
        "offload_csum": True,
    }
    assert config["cpus"]["max_phys_bits"] == 46
    assert config["memory"]["hotplug_method"] == "Acpi"
    assert config["rng"] == {"src": "/dev/urandom", "pci_segment": 0}
    assert config["console"] == {"mode": "Off", "pci_segment": 0}
    assert config["platform"] == {
        "num_pci_segments": 1,
        "iommu_address_width_bits": 64,
        "system_serial_number": "s",
        "system_uuid": platform["uuid"],
        "oem_strings": ["x"],
        "iommufd": False,
        "vfio_p2p_dma": True,
    }
    assert (config["watchdog"], config["landlock_enable"], config["iommu"]) == (False, False, False)


def test_ids_come_from_one_counter_at_boot(vmm: Vmm) -> None:
    images = [{"path": vmm.image("a")}, {"path": vmm.image("b"), "id": "mine"}, {"path": vmm.image("c")}]
    vmm.boot(disks=images, net=[{}], vsock={"cid": 3, "socket": str(vmm.directory / "vsock.sock")})
    config = vmm.client.info()["config"]
    assert [disk["id"] for disk in config["disks"]] == ["_disk0", "mine", "_disk1"]
    assert [net["id"] for net in config["net"]] == ["_net2"]
    assert config["vsock"]["id"] == "_vsock3"
    assert {disk["image_type"] for disk in config["disks"]} == {"Raw"}, "what was detected is kept"
    assert (vmm.directory / "vsock.sock").is_socket()
    tree = vmm.client.info()["device_tree"]
    assert {"_disk0", "mine", "_disk1", "_net2", "__rng", "__serial"} <= tree.keys()
    assert BDF.fullmatch(tree["_virtio-pci-_disk0"]["pci_bdf"])
    assert tree["_disk0"]["parent"] == "_virtio-pci-_disk0"


def test_ids_are_unique_in_a_created_vm(vmm: Vmm) -> None:
    a, b = vmm.image("a"), vmm.image("b")
    vmm.client.create(vmm.config(disks=[{"path": a, "id": "x"}, {"path": b, "id": "x"}]))
    assert refused(lambda client: client.act("boot"), vmm) == (
        500,
        ("Error from API", "The VM could not boot", "Failed to validate config", "Identifier x is not unique"),
    )


def test_two_disks_cannot_share_an_image(vmm: Vmm) -> None:
    a = vmm.image("a")
    vmm.client.create(vmm.config(disks=[{"path": a}, {"path": a}]))
    status, causes = refused(lambda client: client.act("boot"), vmm)
    assert (status, causes[-2:]) == (
        500,
        (f"Failed to get Write lock for disk image: {a}", "The file is already locked"),
    )


def test_hot_plug_of_a_disk(vmm: Vmm) -> None:
    vmm.boot(disks=[{"path": vmm.image("a"), "image_type": "Raw"}])
    first = vmm.client.add("disk", {"path": vmm.image("b"), "image_type": "Raw"})
    second = vmm.client.add("disk", {"path": vmm.image("c"), "image_type": "Raw", "id": "mine", "readonly": True})
    assert first is not None and second is not None
    assert (first["id"], second["id"]) == ("_disk1", "mine")
    assert first.keys() == {"id", "bdf"}
    assert BDF.fullmatch(first["bdf"])
    assert BDF.fullmatch(second["bdf"])
    assert first["bdf"] != second["bdf"]
    assert disks(vmm) == ["_disk0", "_disk1", "mine"]
    assert {"_disk0", "_disk1", "mine"} == vmm.client.counters().keys()
    vmm.client.act("reboot")
    assert disks(vmm) == ["_disk0", "_disk1", "mine"], "what was plugged in stays"


def test_what_hot_plug_refuses(vmm: Vmm) -> None:
    a, b = vmm.image("a"), vmm.image("b")
    vmm.boot(disks=[{"path": a, "image_type": "Raw", "id": "mine"}])
    what = ("Error from API", "The disk could not be added to the VM")
    device_manager = (*what, "Error from device manager")
    for disk, causes in (
        ({"path": b, "id": "mine"}, (*what, "Failed to validate config", "Identifier mine is not unique")),
        ({"path": b, "id": "__rng"}, (*what, "Failed to validate config", "Identifier __rng is not invalid")),
        (
            {"path": "/nosuch"},
            (
                *device_manager,
                "Cannot open disk path",
                "I/O error (path=/nosuch op=open)",
                "No such file or directory (os error 2)",
            ),
        ),
        (
            {"path": a},
            (
                *device_manager,
                "Cannot lock images of all block devices",
                f"Failed to get Write lock for disk image: {a}",
                "The file is already locked",
            ),
        ),
        ({}, (*device_manager, "No disk path was specified when one was expected")),
    ):
        assert refused(lambda client, disk=disk: client.add("disk", disk), vmm) == (500, causes)
    assert disks(vmm) == ["mine"]
    assert vmm.client.add("disk", {"path": b, "id": "other"}) is not None


def test_disks_of_a_created_vm(vmm: Vmm) -> None:
    vmm.client.create(vmm.config())
    assert vmm.client.add("disk", {"path": vmm.image("a"), "id": "a"}) is None
    assert vmm.client.add("disk", {"path": vmm.image("b"), "id": "b"}) is None
    assert refused(lambda client: client.add("disk", {"path": "/x", "id": "a"}), vmm)[1][-1] == (
        "Identifier a is not unique"
    )
    vmm.client.remove_device("a")
    assert refused(lambda client: client.remove_device("a"), vmm)[1][-1] == 'No device with id "a" to remove'
    vmm.client.act("boot")
    assert disks(vmm) == ["b"]


def test_removal(vmm: Vmm) -> None:
    b = vmm.image("b")
    vmm.boot(disks=[{"path": vmm.image("a")}])
    vmm.client.add("disk", {"path": b, "id": "hot"})
    vmm.client.remove_device("hot")
    assert disks(vmm) == ["_disk0"]
    what = ("Error from API", "The device could not be removed from the VM", "Error from device manager")
    for name in ("hot", "nosuch"):
        cause = f"Failed to find device corresponding to the given identifier: {name}"
        assert refused(lambda client, name=name: client.remove_device(name), vmm) == (500, (*what, cause))
    # This guest never lets go of a device, so that its id stays taken.
    assert refused(lambda client: client.add("disk", {"path": b, "id": "hot"}), vmm)[1][-1] == (
        "Invalid identifier as it is not unique: hot"
    )
    assert refused(lambda client: client.remove_device("__rng"), vmm)[0] == 500
    vmm.client.act("shutdown")
    vmm.client.act("boot")
    assert vmm.client.add("disk", {"path": b, "id": "hot"}) is not None


def test_image_types(vmm: Vmm) -> None:
    raw, qcow2 = vmm.image("a"), vmm.image("a.qcow2", MIB, "-f", "qcow2", "-o", "size=1M")
    vmm.boot()
    for path, wanted, detected in ((qcow2, "Raw", "qcow2"), (raw, "Qcow2", "raw")):
        status, causes = refused(
            lambda client, path=path, wanted=wanted: client.add("disk", {"path": path, "image_type": wanted}), vmm
        )
        assert status == 500
        assert causes[-1] == (
            f"Disk image type does not match expected type: specified = {wanted.lower()}, detected = {detected}"
        )
    assert vmm.client.add("disk", {"path": qcow2}) is not None
    assert vmm.client.info()["config"]["disks"][0]["image_type"] == "Qcow2"


@pytest.mark.parametrize("hot", [True, False], ids=["hot-plugged", "at boot"])
def test_a_qcow2_overlay_needs_backing_files(vmm: Vmm, hot: bool) -> None:
    base = vmm.image("base")
    overlay = vmm.image("overlay.qcow2", MIB, "-f", "qcow2", "-b", base, "-F", "raw")
    disk = {"path": overlay, "image_type": "Qcow2"}
    if hot:
        vmm.boot()
        status, causes = refused(lambda client: client.add("disk", disk), vmm)
    else:
        vmm.client.create(vmm.config(disks=[disk]))
        status, causes = refused(lambda client: client.act("boot"), vmm)
        vmm.client.act("delete")
    assert status == 500
    assert causes[-2:] == (f"Unsupported feature (path={overlay} op=open)", "Maximum disk nesting depth exceeded")
    disk = {**disk, "backing_files": True}
    if hot:
        assert vmm.client.add("disk", disk) is not None
    else:
        vmm.boot(disks=[disk])


def test_disk_sizes(vmm: Vmm) -> None:
    raw, qcow2 = vmm.image("a"), vmm.image("a.qcow2", MIB, "-f", "qcow2", "-o", "size=1M")
    vmm.boot(disks=[{"path": raw, "image_type": "Raw", "id": "raw"}, {"path": qcow2, "id": "qcow2"}])
    vmm.client.resize_disk("raw", 2 * MIB)
    assert (vmm.directory / "a").stat().st_size == 2 * MIB
    vmm.client.resize_disk("qcow2", 2 * MIB)
    what = ("Error from API", "The disk could not be resized", "Error from device manager")
    cause = "Failed to find device corresponding to the given identifier: nosuch"
    assert refused(lambda client: client.resize_disk("nosuch", MIB), vmm) == (500, (*what, cause))
    assert refused(lambda client: client.resize_disk("raw", 1000), vmm) == (
        500,
        (*what, "Disk resize error", "Disk image size is not a multiple of 512"),
    )


def test_vcpus(vmm: Vmm) -> None:
    vmm.boot()
    vmm.client.resize(vcpus=2)
    assert vmm.client.info()["config"]["cpus"]["boot_vcpus"] == 2
    what = ("Error from API", "The VM could not be resized", "Error from CPU manager")
    assert refused(lambda client: client.resize(vcpus=3), vmm) == (500, (*what, "Requested vCPUs exceed maximum"))
    assert vmm.client.info()["config"]["cpus"]["boot_vcpus"] == 2


def test_vcpus_of_a_created_vm(vmm: Vmm) -> None:
    vmm.client.create(vmm.config())
    vmm.client.resize(vcpus=2)
    assert vmm.client.info()["config"]["cpus"]["boot_vcpus"] == 2
    vmm.client.act("boot")


def test_memory(vmm: Vmm) -> None:
    vmm.boot(memory={"size": 128 * MIB, "hotplug_size": 256 * MIB})
    vmm.client.resize(memory=256 * MIB)
    info = vmm.client.info()
    assert info["config"]["memory"]["size"] == 256 * MIB
    assert info["memory_actual_size"] == 256 * MIB
    what = ("Error from API", "The VM could not be resized", "Memory manager error")
    for size, cause in (
        (257 * MIB, "The requested hotplug memory addition is not a valid size"),  # it comes in units of 128 MiB
        (512 * MIB, "Not enough space in the hotplug RAM region"),
    ):
        assert refused(lambda client, size=size: client.resize(memory=size), vmm) == (500, (*what, cause))
    assert vmm.client.info()["config"]["memory"]["size"] == 256 * MIB
    vmm.client.resize(memory=384 * MIB)
    vmm.client.resize(memory=128 * MIB)
    assert vmm.client.info()["config"]["memory"]["size"] == 128 * MIB, "less is for the next boot"


def test_memory_without_hotplug_size(vmm: Vmm) -> None:
    vmm.boot()
    status, causes = refused(lambda client: client.resize(memory=192 * MIB), vmm)
    assert (status, causes[-1]) == (500, "Not enough space in the hotplug RAM region")


def test_balloon(vmm: Vmm) -> None:
    vmm.boot(balloon={"size": 0, "deflate_on_oom": True, "free_page_reporting": True})
    vmm.client.resize(balloon=16 * MIB)
    config = vmm.client.info()["config"]
    assert config["balloon"]["size"] == 16 * MIB
    vmm.client.resize(balloon=0)


def test_no_balloon(vmm: Vmm) -> None:
    vmm.boot()
    assert refused(lambda client: client.resize(balloon=MIB), vmm)[1][-1] == (
        "Missing virtio-balloon, can't proceed as expected"
    )


def test_other_devices(vmm: Vmm) -> None:
    vmm.boot(watchdog=True, rng={"src": "/dev/urandom"}, pvpanic=True)
    assert vmm.client.info()["config"]["watchdog"] is True
    assert "__watchdog" in vmm.client.info()["device_tree"]


def test_counters(vmm: Vmm) -> None:
    vmm.boot(disks=[{"path": vmm.image("a"), "id": "a"}], net=[{"id": "n"}])
    counters = vmm.client.counters()
    assert counters["a"].keys() == {
        f"{kind}_{what}"
        for kind in ("read", "write")
        for what in ("bytes", "ops", "latency_min", "latency_max", "latency_avg")
    }
    assert counters["n"].keys() == {"rx_bytes", "rx_frames", "tx_bytes", "tx_frames"}
    assert counters["a"]["write_bytes"] == 0


def test_devices_while_paused(vmm: Vmm) -> None:
    vmm.boot()
    vmm.client.act("pause")
    assert vmm.client.add("disk", {"path": vmm.image("a")}) is not None
    vmm.client.resize(vcpus=2)
    assert vmm.state == "Paused"


def test_a_snapshot_needs_a_paused_vm(vmm: Vmm) -> None:
    vmm.boot()
    status, causes = refused(lambda client: client.snapshot(f"file://{vmm.directory}"), vmm)
    assert (status, causes[-1]) == (500, "Trying to snapshot while VM is running")


def test_vhost_user_needs_shared_memory(vmm: Vmm) -> None:
    vmm.boot()
    filesystem = {"tag": "t", "socket": "/x", "num_queues": 1, "queue_size": 1024}
    assert refused(lambda client: client.add("fs", filesystem), vmm)[1][-1] == (
        "Using vhost-user requires using shared memory or huge pages"
    )


def test_hot_plug_of_a_vsock(vmm: Vmm) -> None:
    vmm.boot()
    socket = vmm.directory / "vsock.sock"
    plugged = vmm.client.add("vsock", {"cid": 9, "socket": str(socket)})
    assert plugged is not None and BDF.fullmatch(plugged["bdf"])
    config = vmm.client.info()["config"]["vsock"]
    assert (config["cid"], config["id"]) == (9, plugged["id"])
    assert socket.is_socket()
    assert refused(lambda client: client.add("vsock", {"cid": 10, "socket": str(socket)}), vmm)[1][-1] == (
        "Too many virtio-vsock devices"
    )
    vmm.client.remove_device(plugged["id"])
    info = vmm.client.info()
    assert info["config"].get("vsock") is None
    # This guest never lets go of a device.
    assert f"_virtio-pci-{plugged['id']}" in info["device_tree"]


def test_virtio_mem(vmm: Vmm, executable: str) -> None:
    if "qemu_vmm" in executable:
        pytest.skip("the stand-in refuses memory hot-plug by virtio-mem, by name")
    vmm.boot(memory={"size": 128 * MIB, "hotplug_size": 256 * MIB, "hotplug_method": "VirtioMem"})
    for size in (256 * MIB, 130 * MIB):
        vmm.client.resize(memory=size)
        memory = vmm.client.info()["config"]["memory"]
        assert (memory["size"], memory["hotplugged_size"]) == (128 * MIB, size - 128 * MIB)
    assert refused(lambda client: client.resize(memory=129 * MIB), vmm)[0] == 500
    assert refused(lambda client: client.resize(memory=512 * MIB), vmm)[0] == 500
    assert refused(lambda client: client.resize(memory=64 * MIB), vmm)[0] == 500


def test_memory_zones(vmm: Vmm, executable: str) -> None:
    if "qemu_vmm" in executable:
        pytest.skip("the stand-in does not emulate memory zones")
    zone = {"id": "a", "size": 128 * MIB, "hotplug_size": 256 * MIB}
    vmm.boot(memory={"size": 0, "hotplug_method": "VirtioMem", "zones": [zone]})
    vmm.client.resize_zone("a", 256 * MIB)
    (kept,) = vmm.client.info()["config"]["memory"]["zones"]
    assert (kept["size"], kept["hotplugged_size"]) == (128 * MIB, 128 * MIB)
    assert refused(lambda client: client.resize_zone("nosuch", 256 * MIB), vmm)[0] == 500
    assert refused(lambda client: client.resize(memory=256 * MIB), vmm)[0] == 500
