# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""TAP devices: those that the VMM makes, and those that were there before it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vmm_process import Vmm, refused
from waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="TAPs need root")

MAC = "12:34:56:78:90:ab"


def ip(*arguments: str) -> None:
    """Run ip."""
    subprocess.run(["ip", *arguments], check=True)


def link(name: str) -> dict[str, Any]:
    """Return what ``ip`` knows of a device, with its addresses."""
    output = subprocess.run(["ip", "-json", "address", "show", "dev", name], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(output.stdout)[0]
    return found


def addresses(name: str, family: str = "inet") -> list[str]:
    """List a device's addresses with their prefix lengths."""
    return [f"{each['local']}/{each['prefixlen']}" for each in link(name)["addr_info"] if each["family"] == family]


def exists(name: str) -> bool:
    """Whether a network device is there."""
    return Path("/sys/class/net", name).exists()


@pytest.fixture
def tap() -> Iterator[str]:
    """A TAP made beforehand, with an address."""
    ip("tuntap", "add", "kept", "mode", "tap", "vnet_hdr")
    ip("address", "add", "192.0.2.1/30", "dev", "kept")
    yield "kept"
    ip("link", "delete", "kept")


def test_a_tap_made_beforehand_keeps_its_address(vmm: Vmm, tap: str) -> None:
    vmm.boot(net=[{"tap": tap, "mac": MAC, "ip": "198.51.100.1", "mask": "255.255.255.0"}])
    assert addresses(tap) == ["192.0.2.1/30"]
    assert "UP" in link(tap)["flags"]
    until("the carrier", lambda: "LOWER_UP" in link(tap)["flags"])
    (net,) = vmm.client.info()["config"]["net"]
    assert (net["tap"], net["mac"], net["host_mac"]) == (tap, MAC, link(tap)["address"])
    vmm.client.act("shutdown")
    assert addresses(tap) == ["192.0.2.1/30"]
    assert "LOWER_UP" not in link(tap)["flags"]
    vmm.client.act("boot")
    vmm.client.vmm_shutdown()
    vmm.wait()
    assert addresses(tap) == ["192.0.2.1/30"]


def test_a_tap_is_made_and_goes(vmm: Vmm) -> None:
    net = {"tap": "made", "mac": MAC, "ip": "192.0.2.5", "mask": "255.255.255.252", "host_mac": "12:34:56:78:90:cd"}
    vmm.boot(net=[net | {"mtu": 1400}])
    assert addresses("made") == ["192.0.2.5/30"]
    assert (link("made")["address"], link("made")["mtu"]) == ("12:34:56:78:90:cd", 1400)
    assert "UP" in link("made")["flags"]
    vmm.client.act("shutdown")
    assert not exists("made")
    vmm.client.act("boot")
    vmm.process.kill()
    vmm.wait()
    until("the TAP's end", lambda: not exists("made"))


def test_an_ipv6_address(vmm: Vmm) -> None:
    vmm.boot(net=[{"tap": "made6", "ip": "fd00::1", "mask": "ffff:ffff:ffff:ffff::"}])
    assert "fd00::1/64" in addresses("made6", "inet6")


def test_without_a_name_the_kernel_gives_one(vmm: Vmm) -> None:
    vmm.boot(net=[{}])
    (net,) = vmm.client.info()["config"]["net"]
    assert "tap" not in net or exists(net["tap"])
    assert any(re.match(r"vmtap\d+$", path.name) for path in Path("/sys/class/net").iterdir())


def test_several_queues(vmm: Vmm) -> None:
    vmm.boot(cpus={"boot_vcpus": 2, "max_vcpus": 2}, net=[{"tap": "queues", "num_queues": 4}])
    assert int(Path("/sys/class/net/queues/tun_flags").read_text(), 16) & 0x100, "IFF_MULTI_QUEUE"


def test_one_queue_does_not_take_a_tap_with_several(vmm: Vmm) -> None:
    ip("tuntap", "add", "many", "mode", "tap", "vnet_hdr", "multi_queue")
    try:
        vmm.client.create(vmm.config(net=[{"tap": "many"}]))
        assert refused(lambda client: client.act("boot"), vmm)[1][-1] == (
            "Error related to the multiqueue support (no support device side)"
        )
    finally:
        ip("link", "delete", "many")


def test_hot_plug(vmm: Vmm, tap: str) -> None:
    vmm.boot()
    answer = vmm.client.add("net", {"tap": tap, "mac": MAC})
    assert answer is not None
    assert answer["id"] == "_net0"
    assert re.fullmatch(r"0000:[0-9a-f]{2}:[0-9a-f]{2}\.0", answer["bdf"])
    assert addresses(tap) == ["192.0.2.1/30"]
    vmm.client.add("net", {"tap": "hot", "id": "mine"})
    assert exists("hot")
    assert [net["id"] for net in vmm.client.info()["config"]["net"]] == ["_net0", "mine"]
    assert vmm.client.counters().keys() == {"_net0", "mine"}
    vmm.client.remove_device("mine")
    assert [net["id"] for net in vmm.client.info()["config"]["net"]] == ["_net0"]


def test_what_hot_plug_refuses(vmm: Vmm, tap: str) -> None:
    vmm.boot(net=[{"tap": tap, "id": "mine"}])
    what = ("Error from API", "The network device could not be added to the VM")
    open_tap = (
        *what,
        "Error from device manager",
        "Cannot create virtio-net device",
        "Failed to open taps",
        "Open tap device failed",
    )
    for net, causes in (
        ({"id": "mine"}, (*what, "Failed to validate config", "Identifier mine is not unique")),
        ({"tap": tap}, (*open_tap, "Unable to configure tap interface", "Device or resource busy (os error 16)")),
        (
            {"tap": "a-name-too-long-"},
            (*open_tap, "Interface name too long (max length is 15): a-name-too-long-"),
        ),
    ):
        assert refused(lambda client, net=net: client.add("net", net), vmm) == (500, causes)
    assert len(vmm.client.info()["config"]["net"]) == 1


def test_a_tap_of_another_vm_is_busy(vmm: Vmm, start_vmm: Any, tap: str) -> None:
    vmm.boot(net=[{"tap": tap}])
    other = start_vmm()
    other.client.create(other.config(net=[{"tap": tap}]))
    assert refused(lambda client: client.act("boot"), other)[1][-1] == "Device or resource busy (os error 16)"
    vmm.client.vmm_shutdown()
    vmm.wait()
    other.client.act("boot")
