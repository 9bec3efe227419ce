# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs under systemd: they start and end, and how they ended is known."""

from __future__ import annotations

import json
from typing import Any

import pvh_guest
from conftest import VERSION, Node


def test_the_role_changes_nothing_the_second_time(prepared: Node, role_variables: dict[str, Any]) -> None:
    assert "changed=0 " in prepared.role(**role_variables)
    assert (
        prepared.out("readlink /usr/local/bin/cloud-hypervisor") == f"/usr/local/lib/microvm/cloud-hypervisor-{VERSION}"
    )
    assert prepared.out("cloud-hypervisor --version").startswith(f"cloud-hypervisor v{VERSION}")
    assert "prepare" in prepared.out("microvm --help")


def test_from_nothing_to_running_and_back(node: Node) -> None:
    nets = [{"tap": "hotap-1", "host_address": "10.252.0.1", "prefix": 30}]
    done = node.vm("web", nets=nets)
    assert done["actions"] == ["recorded what is asked", "wrote the unit", "enable", "start", "boot"]
    assert (done["state"], done["supervisor"], done["user"], done["enabled"]) == ("running", "systemd", "vm-web", True)
    assert node.show("web", "ActiveState") == "active"
    assert node.show("web", "MainPID") == str(done["pid"])
    assert node.vm("web", nets=nets)["actions"] == []

    gone = node.vm("web", by_name=True, state="absent", grace=0)
    assert gone["stopped_by"] == "vm_shutdown"
    left = "ls -d /var/lib/microvm/vms/* /run/microvm/* /etc/systemd/system/*microvm@web* /sys/class/net/hotap-1"
    assert node.ssh(left, check=False).stdout == ""
    assert node.ssh("getent passwd vm-web", check=False).stdout == ""
    assert node.ssh("ls /etc/systemd/system/multi-user.target.wants | grep microvm@", check=False).stdout == ""


def test_systemd_alone_starts_and_stops_a_vm(node: Node) -> None:
    node.vm("web", state="present")
    assert node.info("web")["state"] == "stopped"
    node.ssh("systemctl start microvm@web")
    info = node.info("web")
    assert (info["state"], info["enabled"]) == ("running", False)
    assert node.vm("web")["actions"] == ["enable"]
    node.ssh("systemctl stop microvm@web")
    assert node.info("web")["ended"] == {"reason": "stopped", "detail": "vm_shutdown"}


def test_a_guest_has_its_grace(node: Node) -> None:
    node.vm("web", grace=1)
    # Longer than the unit was told; the tiny guest has no ear for the button.
    stopped = node.vm("web", by_name=True, state="stopped", grace=2)
    assert (stopped["stopped_by"], stopped["enabled"]) == ("vm_shutdown", False)
    assert node.info("web")["ended"] == {"reason": "stopped", "detail": "vm_shutdown"}
    assert node.show("web", "TimeoutStopUSec") == "1min 2s"


def test_a_start_that_fails_is_undone_and_told(node: Node) -> None:
    node.ssh("head -c 4096 /dev/zero >/srv/bad.elf")
    nets = [{"tap": "hotap-2"}]
    failed = node.vm("web", payload={"kernel": "/srv/bad.elf"}, nets=nets, fails=True)
    assert "the VM did not boot, and what was made for it is gone again" in failed["msg"]
    assert node.ssh("ls -d /run/microvm/* /sys/class/net/hotap-2", check=False).stdout == ""
    assert node.info("web")["ended"]["reason"] == "start_failed"

    assert node.ssh("systemctl start microvm@web", check=False).returncode != 0
    ended = node.info("web")["ended"]
    assert ended["reason"] == "start_failed"
    assert "the VMM refused vm.boot" in ended["detail"]

    node.ssh("rm /srv/bad.elf")
    assert node.ssh("systemctl start microvm@web", check=False).returncode != 0
    assert "option 'payload.kernel': '/srv/bad.elf' is not there" in node.info("web")["ended"]["detail"]


def test_a_guest_that_powers_off_stays_off_unless_it_is_to_be_always_on(node: Node) -> None:
    done = node.vm("web", serial={"mode": "pty"})
    node.type(done, pvh_guest.POWER_OFF)
    node.until(lambda: node.show("web", "ActiveState") == "inactive")
    info = node.info("web")
    assert (info["state"], info["ended"]) == ("stopped", {"reason": "guest_shutdown", "detail": None})
    assert info["enabled"]

    done = node.vm("web", serial={"mode": "pty"}, restart="always")
    node.type(done, pvh_guest.POWER_OFF)
    node.until(lambda: node.show("web", "NRestarts") == "1" and node.show("web", "ActiveState") == "active")
    assert node.info("web")["state"] == "running"


def test_a_vmm_that_is_killed_starts_again_so_often(node: Node) -> None:
    done = node.vm("web", restart_limit={"burst": 2, "seconds": 600})
    node.ssh(f"kill -9 {done['pid']}")
    node.until(lambda: node.show("web", "NRestarts") == "1" and node.show("web", "ActiveState") == "active")
    again = node.info("web")
    assert again["state"] == "running"
    assert again["pid"] != done["pid"]

    node.ssh(f"kill -9 {again['pid']}")
    node.until(lambda: node.show("web", "ActiveState") == "failed")
    info = node.info("web")
    assert (info["state"], info["vmm_died"]) == ("stopped", True)
    assert info["ended"] == {
        "reason": "crashed",
        "detail": "signal KILL; it is not started again, since restart_limit is reached",
    }
    assert node.vm("web", by_name=True)["state"] == "running"


def test_a_vm_that_waits_for_its_restart_can_be_stopped(node: Node) -> None:
    done = node.vm("web", restart="always", serial={"mode": "pty"})
    node.type(done, pvh_guest.POWER_OFF)
    assert node.vm("web", by_name=True, state="stopped", grace=0)["enabled"] is False
    assert node.show("web", "ActiveState") == "inactive"


def test_only_what_was_asked_to_run_is_back_after_a_reboot(node: Node) -> None:
    node.vm("runs", nets=[{"tap": "hotap-3", "host_address": "10.252.0.5", "prefix": 30}])
    node.vm("stopped")
    node.vm("stopped", by_name=True, state="stopped", grace=0)
    node.vm("paused", state="paused")
    node.vm("present", state="present")
    # As it goes where a host has a network of its own; this one's outlives it.
    node.ssh("systemctl stop microvm@runs && ip link delete hotap-3")
    node.reboot()
    told = node.module("ch_vm_info")["vms"]
    assert {name: vm["state"] for name, vm in told.items()} == {
        "runs": "running",
        "stopped": "stopped",
        "paused": "stopped",
        "present": "stopped",
    }
    shown = json.loads(node.out("ip -json -4 address show dev hotap-3"))
    assert [(address["local"], address["prefixlen"]) for address in shown[0]["addr_info"]] == [("10.252.0.5", 30)]
    assert told["stopped"]["ended"]["reason"] == "stopped"


def test_a_vm_does_not_start_without_its_isolation(node: Node) -> None:
    node.vm("web", nets=[{"tap": "hotap-4"}], state="present")
    node.ssh("mkdir -p /var/lib/microvm/nftables && touch /var/lib/microvm/nftables/cloud_hypervisor.nft")
    try:
        assert node.ssh("systemctl start microvm@web", check=False).returncode != 0
        assert "the rules that isolate VMs are not loaded" in node.info("web")["ended"]["detail"]
        node.ssh("nft add table inet cloud_hypervisor")
        node.ssh("systemctl start microvm@web")
    finally:
        node.ssh("nft delete table inet cloud_hypervisor; rm -r /var/lib/microvm/nftables", check=False)


def test_where_no_unit_is_wanted_a_process_does_it(node: Node) -> None:
    refused = node.vm("web", supervisor="process", limits={"cpu_quota": "50%"}, fails=True)
    assert "option 'limits': needs a unit" in refused["msg"]
    done = node.vm("web", supervisor="process")
    assert (done["supervisor"], done["enabled"]) == ("process", None)
    # Asking for a unit leaves a VMM that runs where it is.
    assert node.vm("web", supervisor="systemd")["pid"] == done["pid"]
