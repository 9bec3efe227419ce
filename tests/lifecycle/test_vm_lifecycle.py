# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs with the tiny PVH guest, in real VMMs: the stand-in always, and the real one where it can start a guest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from vm_host import RUNNER, Host, nothing_left

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import (
    tap,
    vm_lifecycle,
    vm_stop,
)
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import run_each
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_state import Vm
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_process import wait_for_end


def test_from_nothing_to_running_and_back(host: Host) -> None:
    asked = host.ensure("web", check_mode=True)
    assert asked.changed
    assert asked.facts["state"] == "running"
    assert not host.state_dir.exists()

    done = host.ensure("web")
    assert (done.changed, done.actions) == (True, asked.actions)
    assert done.facts["state"] == "running"
    assert done.facts["vmm_version"].startswith("{}.{}.".format(*host.release))
    assert json.loads((host.state_dir / "vms/web/vm.json").read_text())["config"]["cpus"]["boot_vcpus"] == 1

    for check_mode in (True, False):
        again = host.ensure("web", check_mode=check_mode)
        assert (again.changed, again.facts["pid"]) == (False, done.facts["pid"])

    gone = host.ensure("web", state="absent", by_name=True, grace=0)
    assert (gone.changed, gone.facts["state"], gone.facts["stopped_by"]) == (True, "absent", "vm_shutdown")
    assert nothing_left(host)
    assert not host.ensure("web", state="absent", by_name=True).changed


def test_states(host: Host) -> None:
    assert host.ensure("web", state="present").facts["state"] == "stopped"
    assert host.ensure("web", state="running", by_name=True).facts["state"] == "running"
    assert host.ensure("web", state="paused", by_name=True).facts["state"] == "paused"
    assert not host.ensure("web", state="paused", by_name=True).changed
    assert host.ensure("web", state="running", by_name=True).actions == ("resume",)
    restarted = host.ensure("web", state="restarted", by_name=True, grace=0)
    assert restarted.facts["stopped_by"] == "vm_shutdown"
    stopped = host.ensure("web", state="stopped", by_name=True, grace=0)
    assert (stopped.facts["state"], stopped.facts["stopped_by"]) == ("stopped", "vm_shutdown")
    assert not host.ensure("web", state="stopped", by_name=True).changed
    assert host.info("web")["state"] == "stopped"


@pytest.mark.parametrize("state", ["stopped", "absent", "restarted"])
def test_a_guest_has_the_grace_that_is_on_record(host: Host, state: str) -> None:
    def seconds(**options: Any) -> float:
        begun = time.monotonic()
        host.ensure("web", state=state, by_name=True, **options)
        return time.monotonic() - begun

    # The tiny guest has no ear for the button.
    host.ensure("web", grace=3)
    assert 3 <= seconds() < 15
    host.ensure("web", grace=3)
    assert seconds(grace=0) < 3


def test_info_changes_nothing(host: Host) -> None:
    host.ensure("web", labels={"image": "tiny"})
    info = host.info("web")
    assert (info["state"], info["labels"], info["vmm_died"]) == ("running", {"image": "tiny"}, False)
    assert info["uptime"] >= 0
    assert host.info("other") == {"state": "absent"}
    assert not host.ensure("web", labels={"image": "tiny"}).changed


def test_a_guest_that_powered_off_is_stopped_and_starts_again(host: Host) -> None:
    done = host.ensure("web", serial={"mode": "pty"})
    with open(done.facts["pty"], "r+b", buffering=0) as pty:
        pty.write(b"q")
        vm = Vm.of("web", state_dir=host.state_dir, run_dir=host.run_dir)
        assert wait_for_end(vm.supervisor, 10)
    assert host.info("web")["state"] == "stopped"
    assert host.ensure("web", by_name=True).actions == ("clean", "start", "boot")


def test_the_pty_leads_to_the_guest(host: Host) -> None:
    done = host.ensure("web", serial={"mode": "pty"})
    descriptor = os.open(done.facts["pty"], os.O_RDWR | os.O_NOCTTY)
    try:
        os.write(descriptor, b"echo this")
        heard = b""
        while b"echo this" not in heard:
            heard += os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def test_a_vmm_that_was_killed_is_noticed_and_cleaned_up(host: Host) -> None:
    done = host.ensure("web", vsock={"cid": 77})
    os.kill(done.facts["pid"], signal.SIGKILL)
    vm = Vm.of("web", state_dir=host.state_dir, run_dir=host.run_dir)
    assert wait_for_end(vm.supervisor, 10)
    info = host.info("web")
    assert (info["state"], info["vmm_died"], info["pid"]) == ("stopped", True, None)
    assert host.ensure("web", by_name=True, check_mode=True).actions == ("clean", "start", "boot")
    again = host.ensure("web", by_name=True)
    assert again.facts["state"] == "running"
    assert again.facts["pid"] != done.facts["pid"]


def test_a_vmm_that_hangs_is_killed(host: Host) -> None:
    done = host.ensure("web")
    os.kill(done.facts["pid"], signal.SIGSTOP)
    vm = Vm.of("web", state_dir=host.state_dir, run_dir=host.run_dir)
    vm_stop.STOP_SECONDS = 0.5
    try:
        assert vm_stop.stop(vm, grace=0) == "kill"
    finally:
        vm_stop.STOP_SECONDS = 5.0
    assert host.ensure("web", state="absent", by_name=True).facts["state"] == "absent"
    assert nothing_left(host)


def test_a_foreign_process_with_the_remembered_id_is_never_signalled(host: Host) -> None:
    done = host.ensure("web")
    os.kill(done.facts["pid"], signal.SIGKILL)
    vm = Vm.of("web", state_dir=host.state_dir, run_dir=host.run_dir)
    assert wait_for_end(vm.supervisor, 10)
    with subprocess.Popen(["sleep", "60"]) as innocent:
        remembered = json.loads((host.run_dir / "web/vmm.pid").read_text())
        (host.run_dir / "web/vmm.pid").write_text(json.dumps({**remembered, "pid": innocent.pid}))
        vm.supervisor.signal(signal.SIGKILL)
        host.ensure("web", state="absent", by_name=True)
        assert innocent.poll() is None
        innocent.terminate()


def test_removal_takes_its_own_tap_and_no_other(host: Host) -> None:
    host.taps = ["lctap-1", "lctap-10"]
    host.ensure("one", nets=[{"tap": "lctap-1", "host_address": "10.251.0.1", "prefix": 30}])
    host.ensure("ten", nets=[{"tap": "lctap-10", "host_address": "10.251.0.41", "prefix": 30}])
    host.ensure("one", state="absent", by_name=True, grace=0)
    assert not tap.exists("lctap-1")
    assert tap.has_carrier("lctap-10")
    assert host.info("ten")["state"] == "running"


def test_a_tap_keeps_its_address_and_is_repaired(host: Host) -> None:
    host.taps = ["lctap-2"]
    nets = [{"tap": "lctap-2", "mac": "02:63:00:00:00:01", "host_address": "10.251.0.5", "prefix": 30}]
    host.ensure("web", nets=nets)

    def addresses() -> list[str]:
        shown = json.loads(RUNNER.run(["ip", "-json", "-4", "address", "show", "dev", "lctap-2"]).stdout)
        return [f"{address['local']}/{address['prefixlen']}" for address in shown[0]["addr_info"]]

    assert addresses() == ["10.251.0.5/30"]
    RUNNER.run(["ip", "address", "flush", "dev", "lctap-2"])
    assert host.ensure("web", nets=nets, check_mode=True).changed
    assert host.ensure("web", nets=nets).actions == ("gave lctap-2 the address 10.251.0.5/30",)
    assert addresses() == ["10.251.0.5/30"]
    assert not host.ensure("web", nets=nets).changed


def test_a_tap_has_the_mtu_and_the_mac_that_the_vmm_may_not_set(host: Host) -> None:
    host.taps = ["lctap-4"]
    host.ensure("web", nets=[{"tap": "lctap-4", "mtu": 1400, "host_mac": "02:63:00:00:00:aa"}])
    (shown,) = json.loads(RUNNER.run(["ip", "-json", "link", "show", "dev", "lctap-4"]).stdout)
    assert (shown["mtu"], shown["address"]) == (1400, "02:63:00:00:00:aa")
    bigger = [{"tap": "lctap-4", "mtu": 1500}]
    assert host.ensure("web", nets=bigger).actions == ("recorded what is asked", "gave lctap-4 the mtu 1500")
    assert not host.ensure("web", nets=bigger).changed


def test_an_interface_that_is_no_tap_is_refused(host: Host) -> None:
    with pytest.raises(MicrovmError, match="VM was not started.*'lo' is there and is no TAP"):
        host.ensure("web", nets=[{"tap": "lo"}])
    assert not any(host.run_dir.glob("*"))


def test_a_start_that_fails_is_undone(host: Host) -> None:
    host.taps = ["lctap-3"]
    (host.payload.parent / "bad.elf").write_bytes(b"no kernel")
    bad = {"kernel": str(host.payload.parent / "bad.elf")}
    with pytest.raises(MicrovmError, match="the VM did not boot, and what was made for it is gone again"):
        host.ensure("web", payload=bad, nets=[{"tap": "lctap-3"}])
    assert not tap.exists("lctap-3")
    assert not any(host.run_dir.glob("*"))
    # Then with the right one.
    assert host.ensure("web", nets=[{"tap": "lctap-3"}]).facts["state"] == "running"


def test_what_is_missing_is_named_before_anything_is_made(host: Host) -> None:
    with pytest.raises(MicrovmError, match="option 'payload.kernel': '/nonsense' is not there"):
        host.ensure("web", payload={"kernel": "/nonsense"})
    with pytest.raises(MicrovmError, match="option 'payload': is missing, and no VM of this name is known"):
        host.ensure("web", by_name=True)
    assert not any(host.run_dir.glob("*"))


def test_other_options_need_a_restart_and_say_so(host: Host) -> None:
    first = host.ensure("web")
    waiting = host.ensure("web", memory={"size": "600MiB"})
    assert waiting.facts["pid"] == first.facts["pid"]
    assert (waiting.facts["restart_required"], waiting.facts["restart_reasons"]) == (
        True,
        [f"memory.size is {512 << 20}, not {600 << 20}: it has booted with memory.hotplug_size: 0"],
    )
    assert not host.ensure("web", memory={"size": "600MiB"}).changed
    applied = host.ensure("web", memory={"size": "600MiB"}, apply="restart")
    assert (applied.facts["state"], applied.facts["restart_required"]) == ("running", False)
    assert host.info("web")["config"]["memory"]["size"] == 600 << 20


def test_a_disk_that_was_replaced_needs_a_restart(host: Host) -> None:
    disk = host.payload.parent / "service.img"
    disk.write_bytes(bytes(1 << 20))
    disks = [{"id": "service", "path": str(disk), "image_type": "raw", "readonly": True}]
    host.ensure("web", disks=disks)
    assert not host.ensure("web", disks=disks).facts["restart_required"]
    (disk.parent / "new").write_bytes(bytes(1 << 20))
    (disk.parent / "new").replace(disk)
    assert host.ensure("web", disks=disks).facts["restart_reasons"] == ["disks.service was replaced"]


def test_one_that_fails_does_not_stop_the_others(host: Host) -> None:
    items = [host.options("a"), host.options("b", payload={"kernel": "/nonsense"}), host.options("c")]
    outcomes = run_each(
        items,
        lambda item: vm_lifecycle.ensure(item, state_dir=host.state_dir, run_dir=host.run_dir, runner=RUNNER),
    )
    assert str(outcomes["b"]).startswith("VM 'b', option 'payload.kernel'")
    assert [host.info(name)["state"] for name in ("a", "c")] == ["running", "running"]


def test_a_vmm_of_roots_has_no_capability(host: Host) -> None:
    done = host.ensure("web", nets=[{"tap": "lctap-9"}])
    host.taps = ["lctap-9"]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{done.facts['pid']}/status").read_text().splitlines())
    assert [int(status[f"Cap{sort}"], 16) for sort in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [0] * 5
    assert status["NoNewPrivs"] == "1"
