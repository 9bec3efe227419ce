# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How runs over many VMs and many hosts go, on this machine; where VMs are not what it is about, in check mode."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from playbook_runs import VMM, Hosts
from vm_host import Host

Vms = Callable[[int], list[dict[str, Any]]]
BAD = {"name": "bad", "memory": {"size": "much"}}


def test_the_number_of_tasks_does_not_depend_on_the_number_of_vms(hosts: Hosts, vms: Vms) -> None:
    hosts.write({"h1": {"vm_instances": vms(1)}, "h50": {"vm_instances": vms(50)}})
    run = hosts.role("--check")
    assert run.returncode == 0, run.output
    assert run.tasks("h1") == run.tasks("h50") > 5
    # That the count would show it: batches do take tasks of their own.
    run = hosts.role("--check", vm_batch=25)
    assert run.tasks("h50") > run.tasks("h1")


def test_hosts_after_a_batch_that_used_up_the_budget_are_left_alone(hosts: Hosts, vms: Vms) -> None:
    hosts.write({"a": {"vm_instances": [BAD]}, "b": {"vm_instances": vms(1)}, "c": {"vm_instances": vms(1)}})
    run = hosts.role("--check", batch=2, failure_budget=49)
    assert run.returncode != 0
    assert run.recap.keys() == {"a", "b"}
    assert "VM 'bad', option 'memory.size': 'much' is not a size" in run.output
    run = hosts.role("--check", batch=2)
    assert {host: counts["failed"] for host, counts in run.recap.items()} == {"a": 1, "b": 0, "c": 0}


def test_vms_after_a_batch_that_used_up_the_budget_are_left_alone(hosts: Hosts, vms: Vms) -> None:
    first, second = vms(2)
    hosts.write({"a": {"vm_instances": [first, BAD, second]}})
    run = hosts.role("--check", vm_batch=2)
    assert run.returncode != 0
    assert "not begun, for the failure budget of 0 is used up: vm1" in run.output
    run = hosts.role("--check", vm_batch=2, vm_failure_budget=1)
    assert "'much' is not a size" in run.output
    assert "not begun" not in run.output


def test_hosts_get_another_vmm_one_after_the_other(hosts: Hosts) -> None:
    hosts.write({"a": {"host_vmm": {"src": str(VMM)}}, "b": {"host_vmm": {"src": str(VMM), "version": "53.0"}}})
    run = hosts.run("microvm.cloud_hypervisor.update_vmm", "--check", guests="restart")
    assert "A file needs its version as well" in " ".join(run.output.split())
    assert run.recap.keys() == {"a"}
    run = hosts.run("microvm.cloud_hypervisor.update_vmm", "--check", "--limit", "b", guests="restart")
    assert run.returncode == 0, run.output


def test_vms_are_restarted_batch_by_batch_until_one_does_not_get_ready(hosts: Hosts) -> None:
    hosts.write({"a": {"vm_grace": 0}})
    host = Host(hosts.directory / "state/a", hosts.directory / "run/a", str(VMM), hosts.directory / "pvh.elf")
    names = ["first", "second", "third"]
    pids = {name: host.ensure(name).facts["pid"] for name in names}
    try:
        host.ensure("second", state="present", wait_for={"serial": "what it never says", "timeout": 1})
        run = hosts.run("microvm.cloud_hypervisor.reboot", vm_batch=1)
        assert run.returncode != 0
        assert "was not ready within 1 seconds" in " ".join(run.output.split())
        assert [host.info(name)["pid"] == pids[name] for name in names] == [False, False, True]
    finally:
        for name in names:
            host.ensure(name, state="absent", by_name=True, grace=0)


@pytest.mark.parametrize("playbook", ["reboot", "teardown"])
def test_a_vm_that_is_stopped_has_its_own_grace(hosts: Hosts, playbook: str) -> None:
    hosts.write({"a": {"vm_instances": [{"name": "web", "grace": 0}], "vm_grace": 60}})
    host = Host(hosts.directory / "state/a", hosts.directory / "run/a", str(VMM), hosts.directory / "pvh.elf")
    # The tiny guest has no ear for the button: it takes all of the time that it is given.
    pid = host.ensure("web", grace=60).facts["pid"]
    try:
        begun = time.monotonic()
        run = hosts.run(f"microvm.cloud_hypervisor.{playbook}")
        assert run.returncode == 0, run.output
        assert time.monotonic() - begun < 45
        assert host.info("web").get("pid") != pid
    finally:
        host.ensure("web", state="absent", by_name=True, grace=0)
