# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Limits that bite, and a host that is full."""

from __future__ import annotations

import pvh_guest
from conftest import Node


def test_a_guest_that_spins_gets_its_share_of_a_cpu_and_no_more(node: Node) -> None:
    pid = node.vm("web")["pid"]
    # So little that even a busy machine would give more. It counts at once, without a restart.
    assert node.vm("web", limits={"cpu_quota": "5%"})["pid"] == pid

    def counted(name: str) -> int:
        lines = node.out(f"cat {node.cgroup('web', 'cpu')}/cpu.stat").splitlines()
        return int(dict(line.split() for line in lines)[name])

    before = counted("nr_throttled")
    node.until(lambda: counted("nr_throttled") > before + 5)
    assert node.vm("web", limits={"cpu_quota": "70%"})["pid"] == pid
    assert node.out(f"cat {node.cgroup('web', 'cpu')}/cpu.cfs_quota_us") == "70000"


def test_a_vm_that_uses_more_memory_than_it_may_is_killed(node: Node) -> None:
    done = node.vm("web", restart="no", serial={"mode": "pty"}, limits={"memory_max": "65MiB"})
    node.type(done, pvh_guest.FILL)
    node.until(lambda: node.show("web", "ActiveState") == "failed")
    info = node.info("web")
    assert (info["state"], info["vmm_died"], info["ended"]["reason"]) == ("stopped", True, "oom_killed")

    # With what a VMM takes by default the same guest has all of its memory.
    done = node.vm("web", restart="no", serial={"mode": "pty"})
    node.type(done, pvh_guest.FILL)
    usage = f"cat {node.cgroup('web', 'memory')}/memory.usage_in_bytes"
    node.until(lambda: int(node.out(usage)) > 62 << 20)
    assert node.info("web")["state"] == "running"


def test_a_vmm_that_wants_more_threads_than_it_may_does_not_start(node: Node) -> None:
    failed = node.vm("web", restart="no", limits={"tasks_max": 3}, fails=True)
    assert "the VM was not started" in failed["msg"]
    assert node.vm("web", restart="no", limits={"tasks_max": 30})["state"] == "running"
    assert node.out(f"cat {node.cgroup('web', 'pids')}/pids.max") == "30"


def test_a_host_that_is_full_refuses_before_anything_is_made(node: Node) -> None:
    node.vm("web")
    host = node.module("ch_vm_info")["host"]
    assert host["promised_memory"] == 64 << 20
    assert host["promised_vcpus"] == 1
    options = {
        "vms": [
            {"name": name, "payload": {"kernel": "/srv/pvh.elf"}, "memory": {"size": "64MiB"}} for name in ("b", "c")
        ],
        "capacity": {"memory_ratio": (129 << 20) / host["memory"]},
    }
    asked = node.module("ch_vm", **options, _ansible_check_mode=True)
    done = node.module("ch_vm", **options)
    for result in (asked, done):
        assert result["failed"]
        assert result["vms"]["b"]["state"] == "running"
        assert "the VM does not fit: it asks for 64MiB, 128MiB are promised to others" in result["vms"]["c"]["msg"]
    assert node.ssh("ls -d /var/lib/microvm/vms/c; getent passwd vm-c", check=False).stdout == ""
