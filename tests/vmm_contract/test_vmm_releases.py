# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection relies on, on every release that it supports, and what differs between them."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pvh_guest
import pytest
import real_vmms
from vmm_process import MIB, Vmm, refused
from waiting import until

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import landlock
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_api import VmmError

pytestmark = pytest.mark.all_releases


def is_stand_in(vmm: Vmm) -> bool:
    return "stand-in" in real_vmms.said(vmm.executable)


def test_a_vmm_says_which_release_it_is(vmm: Vmm) -> None:
    told = vmm.client.ping()
    assert told["pid"] == vmm.process.pid
    assert tuple(int(number) for number in told["version"].split(".")[:2]) == vmm.release


def test_an_error_is_a_list_of_causes_from_v47_on_and_text_before(vmm: Vmm) -> None:
    status, causes = refused(lambda client: client.info(), vmm)
    assert status == (404 if vmm.release >= (53, 0) else 500), "so the status does not tell that there is no VM"
    assert causes[-1].endswith("VM is not created")
    assert (len(causes) > 1) == (vmm.release >= (47, 0))


def test_the_whole_life(vmm: Vmm) -> None:
    vmm.boot()
    for action, state in (
        ("pause", "Paused"),
        ("resume", "Running"),
        ("power-button", "Running"),
        ("reboot", "Running"),
        ("shutdown", "Created"),
        ("boot", "Running"),
    ):
        vmm.client.act(action)  # type: ignore[arg-type]
        assert vmm.state == state, action
    vmm.client.act("delete")
    vmm.client.vmm_shutdown()
    assert vmm.wait() == 0
    assert not vmm.socket.exists()
    assert vmm.events() == [
        "vmm starting",
        *("vm booting", "vm booted"),
        *("vm pausing", "vm paused", "vm resuming", "vm resumed"),
        *("vm rebooting", "vm rebooted"),
        "vm shutdown",
        *("vm booting", "vm booted"),
        *("vm shutdown", "vm deleted"),
        "vmm shutdown",
    ]


def test_a_guest_ends_its_vmm_and_resets_itself(vmm: Vmm) -> None:
    with vmm.boot_on_socket() as guest:
        guest.sendall(pvh_guest.RESET)
        until("the reset", lambda: "vm rebooted" in vmm.events())
    with vmm.serial_socket() as guest:
        guest.sendall(pvh_guest.POWER_OFF)
        assert vmm.wait() == 0
    assert vmm.events()[-3:] == ["vm shutdown", "vm deleted", "vmm shutdown"]


def test_the_socket_of_a_vmm_that_was_killed_is_taken_over_from_v53_on(vmm: Vmm) -> None:
    vmm.process.kill()
    vmm.process.wait()
    if vmm.release < (53, 0):
        with pytest.raises(AssertionError, match="Address already in use"):
            vmm.start()
        vmm.socket.unlink(missing_ok=True)  # v52 takes it away as it fails
    vmm.start()
    vmm.boot()


def test_devices_come_and_go(vmm: Vmm) -> None:
    vmm.boot(memory={"size": 128 * MIB, "hotplug_size": 256 * MIB}, balloon={"size": 0})
    devices: dict[str, Any] = {
        "disk": {"id": "d", "path": vmm.image("d")},
        "net": {"id": "n"},
        "vsock": {"id": "v", "cid": 5, "socket": str(vmm.directory / "vsock.sock")},
    }
    if not is_stand_in(vmm):
        devices["pmem"] = {"id": "p", "file": vmm.image("p", 128 * MIB)}
    for kind, device in devices.items():
        plugged = vmm.client.add(kind, device)  # type: ignore[arg-type]
        assert plugged is not None and plugged.keys() == {"id", "bdf"}
    assert vmm.client.counters().keys() == {"d", "n"}
    for device in devices.values():
        vmm.client.remove_device(device["id"])
    vmm.client.resize(vcpus=2, memory=256 * MIB)
    vmm.client.resize(balloon=MIB)
    info = vmm.client.info()
    config = info["config"]
    assert not any(config.get(kind) for kind in ("disks", "net", "vsock", "pmem"))
    # This guest never lets go of a device.
    assert {f"_virtio-pci-{device['id']}" for device in devices.values()} <= info["device_tree"].keys()
    assert (config["cpus"]["boot_vcpus"], config["memory"]["size"]) == (2, 256 * MIB)
    assert config["balloon"]["size"] == MIB


def test_vhost_user_needs_shared_memory(vmm: Vmm) -> None:
    vmm.boot()
    filesystem = {"tag": "t", "socket": "/x", "num_queues": 1, "queue_size": 1024}
    assert refused(lambda client: client.add("fs", filesystem), vmm)[0] == 500


def test_numbers_of_vcpus_are_wider_from_v48_on(vmm: Vmm) -> None:
    cpus = {"boot_vcpus": 1, "max_vcpus": 300}
    status, text = vmm.raw("PUT", "vm.create", json.dumps(vmm.config(cpus=cpus)))
    assert status == (204 if vmm.release >= (48, 0) else 400)
    assert status == 204 or "expected u8" in text


@pytest.mark.parametrize(("mode", "since"), [("Pty", (50, 0)), ("Socket", (53, 0))])
def test_who_attaches_gets_what_the_guest_wrote_before(vmm: Vmm, mode: str, since: tuple[int, int]) -> None:
    path = vmm.directory / "serial.sock"
    vmm.boot(serial={"mode": mode, **({"socket": str(path)} if mode == "Socket" else {})})
    time.sleep(0.5)  # it writes its banner at once
    if mode == "Socket":
        guest = socket.socket(socket.AF_UNIX)
        guest.connect(str(path))
        descriptor = guest.detach()
    else:
        descriptor = os.open(vmm.client.info()["config"]["serial"]["file"], os.O_RDWR | os.O_NOCTTY)
    os.set_blocking(descriptor, False)

    def heard() -> bytes:
        try:
            return os.read(descriptor, 1000)
        except BlockingIOError:
            return b""

    try:
        if vmm.release >= since:
            assert until("the banner", heard).startswith(pvh_guest.BANNER[:3])
        else:
            time.sleep(1.5)
            assert heard() == b""
    finally:
        os.close(descriptor)


@pytest.mark.skipif(not landlock.available(), reason="the kernel has no Landlock")
@pytest.mark.parametrize("ours", [True, False], ids=["our rules", "its own"])
def test_a_reboot_under_landlock_opens_a_pty_anew(vmm: Vmm, ours: bool) -> None:
    if is_stand_in(vmm):
        pytest.skip("the stand-in takes Landlock without its effect")
    paths = [str(vmm.directory), *(["/dev/ptmx", "/dev/pts"] if ours else [])]
    rules = [{"path": path, "access": "rw"} for path in paths]
    vmm.client.create(vmm.config(serial={"mode": "Pty"}, landlock_enable=True, landlock_rules=rules))
    vmm.client.act("boot")
    if ours or vmm.release >= (52, 0):
        vmm.client.act("reboot")
        assert vmm.state == "Running"
    else:
        assert refused(lambda client: client.act("reboot"), vmm)[0] == 500


# ---- Disks ----


def boots(vmm: Vmm, disk: dict[str, Any]) -> bool:
    """Whether a VM with this disk boots."""
    vmm.client.create(vmm.config(disks=[disk]))
    try:
        vmm.client.act("boot")
    except VmmError:
        return False
    return True


def test_a_qcow2_image_is_based_on_qcow2_and_from_v51_on_on_raw(vmm: Vmm) -> None:
    base = vmm.image("base")
    raw = vmm.image("over-raw.qcow2", MIB, "-f", "qcow2", "-b", base, "-F", "raw")
    told = {"image_type": "Qcow2", "backing_files": True}
    assert boots(vmm, {"path": raw, **told}) == (vmm.release >= (51, 0))
    vmm.client.act("delete")
    below = vmm.image("below.qcow2", MIB, "-f", "qcow2", "-o", "size=1M")
    qcow2 = vmm.image("over-qcow2.qcow2", MIB, "-f", "qcow2", "-b", below, "-F", "qcow2")
    assert boots(vmm, {"path": qcow2, **told})


@pytest.mark.parametrize("kind", ["Raw", "Qcow2"])
def test_what_grows_while_the_guest_runs(vmm: Vmm, kind: str) -> None:
    path = vmm.image("disk", MIB, *(["-f", "qcow2", "-o", "size=1M"] if kind == "Qcow2" else []))
    vmm.boot(disks=[{"id": "d", "path": path, "image_type": kind}])
    grow: Callable[[Any], object] = lambda client: client.resize_disk("d", 2 * MIB)  # noqa: E731
    if vmm.release >= ((50, 0) if kind == "Raw" else (51, 0)):
        grow(vmm.client)
    else:
        assert refused(grow, vmm)[0] == (404 if vmm.release < (50, 0) else 500)


def test_an_image_that_is_based_on_another_does_not_grow(vmm: Vmm) -> None:
    if vmm.release < (51, 0):
        pytest.skip("the release grows no qcow2 image at all")
    overlay = vmm.image("over.qcow2", MIB, "-f", "qcow2", "-b", vmm.image("base"), "-F", "raw")
    vmm.boot(disks=[{"id": "d", "path": overlay, "image_type": "Qcow2", "backing_files": True}])
    status, causes = refused(lambda client: client.resize_disk("d", 2 * MIB), vmm)
    assert (status, causes[-1].lower()[:35]) == (500, "resize not supported with backing f")


def test_a_type_counts_from_v50_1_on_and_is_guessed_before(vmm: Vmm) -> None:
    raw = vmm.image("raw")
    assert boots(vmm, {"path": raw, "image_type": "Qcow2"}) == (vmm.release < (50, 1))
