# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots and other VMMs, where the VMM is a unit's main process."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import VERSION, Node

DISK = "/var/lib/microvm/vms/web/data.raw"
DISKS = [{"id": "data", "path": DISK, "image_type": "raw"}]


def started(node: Node) -> dict[str, Any]:
    node.ssh(f"mkdir -p $(dirname {DISK}) && echo before >{DISK} && truncate -s 1M {DISK}")
    return node.vm("web", disks=DISKS, restart="no")


def asked(node: Node, module: str, **options: Any) -> dict[str, Any]:
    return dict(node.module(module, name="web", **options)["vms"]["web"])


def test_disks_are_snapshotted_and_restored(node: Node) -> None:
    pid = started(node)["pid"]
    made = asked(node, "ch_snapshot", snapshot="one", memory=False)
    assert made["snapshot"]["name"] == "one"
    assert (node.info("web")["state"], node.info("web")["pid"]) == ("running", pid)
    node.ssh(f"printf later | dd of={DISK} conv=notrunc status=none")
    asked(node, "ch_snapshot", snapshot="one", state="restored", memory=False)
    assert node.out(f"head --bytes=6 {DISK}") == "before"
    assert node.out(f"stat --format=%U:%a {DISK}") == "vm-web:600"
    assert node.info("web")["state"] == "running"
    assert node.show("web", "ActiveState") == "active"
    asked(node, "ch_snapshot", keep=0, state="absent")
    assert node.ssh("find /var/lib/microvm/snapshots -type f", check=False).stdout == ""


def test_the_guest_runs_on_whether_its_memory_can_be_saved_or_not(node: Node) -> None:
    """Where KVM does not tell a vCPU's nested state, no memory can be saved (hypervisor/src/kvm/mod.rs)."""
    pid = started(node)["pid"]
    made = asked(node, "ch_snapshot", snapshot="two")
    info = node.info("web")
    assert info["state"] == "running"
    assert ("it was started again from its disks" in made.get("msg", "")) == (info["pid"] != pid)
    kept = node.ssh("find /var/lib/microvm/snapshots/web/two -type f", check=False).stdout
    if made.get("failed"):
        assert "GetNestedState" in made["msg"]
        assert kept == ""
    else:
        assert "memory-ranges" in kept
    assert node.ssh("test -e /var/lib/microvm/vms/web/.memory", check=False).returncode != 0
    asked(node, "ch_snapshot", keep=0, state="absent")


@pytest.mark.parametrize("restart", ["no", "on-failure"])
def test_a_units_guest_goes_on_or_is_started_again(node: Node, restart: str) -> None:
    """Where KVM does not tell a vCPU's nested state, no release after v48.0 can send its VM."""
    nets = [{"tap": "hotap-5", "host_address": "10.252.0.9", "prefix": 30}]
    pid = node.vm("web", nets=nets, restart=restart)["pid"]
    limit, log = node.show("web", "MemoryMax"), "/var/lib/microvm/vms/web/serial.log"
    assert not asked(node, "ch_upgrade").get("changed")
    done = asked(node, "ch_upgrade", force=True)
    info = node.info("web")
    if done.get("failed"):
        stayed = (
            "the guest runs on in the VMM that it was in: the VMM re" in done["msg"]
        )  # -ports, or -fused before v53.0
        lost = done["msg"].endswith("it was started again from its disks")
        assert stayed or lost
        assert (info["pid"] == pid) == stayed
    else:
        assert done["actions"] == [f"moved the guest from v{VERSION} to v{VERSION}"]
        assert info["pid"] != pid
    assert info["state"] == "running"
    assert node.show("web", "MainPID") == str(info["pid"])
    assert node.vm("web", nets=nets, restart=restart)["actions"] == []
    # Nothing of the move is left.
    assert node.show("web", "MemoryMax") == limit
    assert node.show("web", "SuccessExitStatus") == ""
    left = f"ls -d /run/systemd/system/microvm@* {log}.old /var/lib/microvm/vms/web/upgrade.json /sys/class/net/aside*"
    assert node.ssh(left, check=False).stdout == ""


def test_a_vmm_that_cannot_be_run_leaves_the_guest_where_it_is(node: Node) -> None:
    pid = started(node)["pid"]
    node.ssh(
        "printf '#!/bin/sh\n[ $1 = --version ] && echo cloud-hypervisor v54.0\n' >/srv/broken && chmod 755 /srv/broken"
    )
    refused = asked(node, "ch_upgrade", vmm="/srv/broken")
    assert (
        "the guest runs on in the VMM that it was in: the VMM that is to receive the VM ended before" in refused["msg"]
    )
    info = node.info("web")
    assert (info["state"], info["pid"]) == ("running", pid)
    assert node.vm("web", disks=DISKS, restart="no")["actions"] == []
