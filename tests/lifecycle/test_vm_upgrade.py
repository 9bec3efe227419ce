# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Moves of a guest between two VMMs on one host. On a KVM without nested state the real VMM dies of it: then the guest is to be found again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pvh_guest
import pytest
from vm_host import RUNNER, STAND_IN, Host
from waiting import until

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import (
    handover,
    tap,
    vm_migration,
    vm_upgrade,
    vmm_versions,
)
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_state import Vm

NETS = [{"tap": "uptap-1", "mac": "02:63:00:00:00:01", "host_address": "10.251.1.1", "prefix": 30}]


def upgrade(host: Host, name: str, **options: Any) -> Outcome:
    check_mode = options.pop("check_mode", False)
    item = {"name": name, "force": True, **options}
    return vm_upgrade.ensure(item, state_dir=host.state_dir, run_dir=host.run_dir, runner=RUNNER, check_mode=check_mode)


def start(host: Host, **options: Any) -> int:
    """Start a VM with a disk, a TAP, and a log for its serial port; wait until its guest has booted."""
    host.taps = ["uptap-1"]
    root = host.state_dir / "vms/web/root.raw"
    root.parent.mkdir(parents=True, exist_ok=True)
    root.write_bytes(bytes(1 << 20))
    disks = [{"id": "root", "path": str(root), "image_type": "raw"}]
    done = host.ensure(
        "web", **{"disks": disks, "nets": NETS, "vsock": {"cid": 77}, "memory": {"size": "64MiB"}, **options}
    )
    if "serial" not in options:
        log = host.state_dir / "vms/web/serial.log"
        until("the boot", lambda: pvh_guest.BANNER in log.read_bytes())
    return int(done.facts["pid"])


def names(host: Host) -> set[str]:
    """List what a VM that runs has in its run directory, without what comes and goes."""
    return {path.name for path in (host.run_dir / "web").iterdir() if not path.name.endswith(".lock")}


def links() -> set[str]:
    return {name for name in os.listdir("/sys/class/net") if name.startswith(("uptap", "aside"))}


def one_guest_runs(host: Host, where: set[str]) -> dict[str, Any]:
    """Check that the VM runs, once, under all its old names; return what is told of it."""
    info = host.info("web")
    assert (info["state"], info["vmm_died"]) == ("running", False)
    assert tap.has_carrier("uptap-1")
    assert links() == {"uptap-1"}
    assert names(host) == where
    with socket.socket(socket.AF_UNIX) as vsock:
        vsock.connect(str(host.run_dir / "web/vsock.sock"))
    shown = json.loads(RUNNER.run(["ip", "-json", "-4", "address", "show", "dev", "uptap-1"]).stdout)
    assert [address["local"] for address in shown[0]["addr_info"]] == ["10.251.1.1"]
    return info


def only_the_stand_in(host: Host) -> None:
    if host.vmm != str(STAND_IN):
        pytest.skip("on a KVM without nested state, v53.0 dies of SIGSYS when it sends its VM; see the test of that")


def test_the_guest_goes_on_in_another_vmm(host: Host) -> None:
    only_the_stand_in(host)
    pid = start(host, wait_for={"serial": pvh_guest.BANNER.decode().strip(), "timeout": 20})
    before = names(host)
    mac = Path("/sys/class/net/uptap-1/address").read_text()
    assert upgrade(host, "web", check_mode=True).changed
    assert not upgrade(host, "web", force=False).changed
    assert host.info("web")["pid"] == pid
    for _again in range(2):
        done = upgrade(host, "web")
        assert done.actions == ("moved the guest from v53.0 to v53.0",)
        info = one_guest_runs(host, before)
        assert info["pid"] == done.facts["pid"] != pid
        assert Path("/sys/class/net/uptap-1/address").read_text() == mac
    # It is as ready as it was, though its log does not say so again.
    assert not host.ensure("web", by_name=True).changed
    # It has not booted: its banner is in the log of the first VMM alone.
    assert pvh_guest.BANNER in (host.state_dir / "vms/web/serial.log.1").read_bytes()
    assert pvh_guest.BANNER not in (host.state_dir / "vms/web/serial.log").read_bytes()
    host.ensure("web", state="stopped", by_name=True, grace=0)
    assert not (host.run_dir / "web").exists()


def test_shared_memory_a_pause_and_a_socket(host: Host) -> None:
    only_the_stand_in(host)
    start(host, serial={"mode": "socket"}, memory={"size": "64MiB", "shared": True})
    host.ensure("web", state="paused", by_name=True)
    upgrade(host, "web")
    assert host.info("web")["state"] == "paused"
    host.ensure("web", state="running", by_name=True)
    with socket.socket(socket.AF_UNIX) as serial:
        serial.settimeout(20)
        serial.connect(str(host.run_dir / "web/serial.sock"))
        serial.sendall(b"y")
        while b"y" not in serial.recv(100):
            pass


def test_an_older_vmm_and_a_vm_that_is_stopped(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    start(host)
    monkeypatch.setattr(vmm_versions, "installed", lambda _runner, _vmm: (52, 0))
    with pytest.raises(MicrovmError, match=r"option 'vmm': runs in v53\.0, and v52\.0 is asked for"):
        upgrade(host, "web")
    host.ensure("web", state="stopped", by_name=True, grace=0)
    assert not upgrade(host, "web").changed


def test_a_vmm_that_dies_of_it_is_started_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What v53.0 does by itself on a KVM without nested state; where it does not, it is killed at that point."""
    pid = start(host)
    before = names(host)
    if host.vmm == str(STAND_IN):
        send = vm_migration.send

        def die(vm: Vm, *arguments: Any, **options: Any) -> tuple[bool, str]:
            os.kill(pid, signal.SIGKILL)
            return send(vm, *arguments, **options)

        monkeypatch.setattr(vm_migration, "send", die)
    try:
        upgrade(host, "web")
    except MicrovmError as error:
        assert "the VMM died as it handed its VM over, and with it the guest" in str(error)
        assert str(error).endswith("it was started again from its disks")
    else:
        assert host.vmm != str(STAND_IN)
    info = one_guest_runs(host, before)
    assert info["pid"] != pid


def test_a_new_vmm_that_dies_leaves_the_guest_where_it_is(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = start(host)
    before = names(host)
    make_room = handover.make_room

    def die(*arguments: Any) -> None:
        make_room(*arguments)
        os.kill(json.loads((host.run_dir / "web/vmm.next.pid").read_text())["pid"], signal.SIGKILL)

    monkeypatch.setattr(handover, "make_room", die)
    with pytest.raises(MicrovmError, match="the guest runs on in the VMM that it was in: the VMM reports"):
        upgrade(host, "web")
    assert one_guest_runs(host, before)["pid"] == pid


def test_a_vmm_that_does_not_start_leaves_the_guest_where_it_is(host: Host, tmp_path: Path) -> None:
    pid = start(host)
    before = names(host)
    broken = tmp_path / "cloud-hypervisor"
    broken.write_text("#!/bin/sh\n[ $1 = --version ] && echo cloud-hypervisor v54.0\n")
    broken.chmod(0o755)
    with pytest.raises(
        MicrovmError, match="the VMM that is to receive the VM ended before its API answered; it said nothing"
    ):
        upgrade(host, "web", vmm=str(broken))
    assert one_guest_runs(host, before)["pid"] == pid
    assert json.loads((host.state_dir / "vms/web/vm.json").read_text())["options"]["vmm"] == host.vmm


@pytest.mark.parametrize("when", ["begin_receiving", "make_room", "send"])
def test_a_run_that_was_killed_is_undone(host: Host, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    pid = start(host)
    before = names(host)
    module: Any = handover if when == "make_room" else vm_migration

    def die(*_arguments: Any, **_options: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(module, when, die)
        killed = multiprocessing.get_context("fork").Process(target=upgrade, args=(host, "web"))
        killed.start()
        killed.join(30)
    assert killed.exitcode == -signal.SIGKILL
    done = upgrade(host, "web", force=False)
    assert done.actions == ("undid a move to another VMM, which a run that did not end had begun",)
    assert one_guest_runs(host, before)["pid"] == pid


def test_a_run_that_was_killed_after_the_move_is_finished(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    only_the_stand_in(host)
    ready = {"serial": pvh_guest.BANNER.decode().strip(), "timeout": 20}
    pid = start(host, wait_for=ready)
    before = names(host)
    with monkeypatch.context() as patched:
        patched.setattr(handover, "finish", lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL))
        killed = multiprocessing.get_context("fork").Process(target=upgrade, args=(host, "web"))
        killed.start()
        killed.join(30)
    assert killed.exitcode == -signal.SIGKILL
    # ch_vm finds the guest as well, as ready as it was.
    assert host.ensure("web", by_name=True).actions == (
        "finished the guest's move to another VMM, which a run that did not end had begun",
    )
    assert one_guest_runs(host, before)["pid"] != pid
