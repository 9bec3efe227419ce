# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Moves of a guest between two VMMs on one host. On a KVM without nested state releases after v48.0 cannot send it: then it stays."""

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
import real_vmms
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


def needs_a_move(host: Host) -> None:
    """A KVM without nested state is enough for the releases up to v48.0; later ones need it to send their VM."""
    if host.vmm != str(STAND_IN) and host.release > (48, 0):
        pytest.skip(f"on a KVM without nested state, {real_vmms.label(host.vmm)} cannot send its VM")


def test_the_guest_goes_on_in_another_vmm(host: Host) -> None:
    needs_a_move(host)
    pid = start(host, wait_for={"serial": pvh_guest.BANNER.decode().strip(), "timeout": 20})
    before = names(host)
    mac = Path("/sys/class/net/uptap-1/address").read_text()
    assert upgrade(host, "web", check_mode=True).changed
    assert not upgrade(host, "web", force=False).changed
    assert host.info("web")["pid"] == pid
    for _again in range(2):
        done = upgrade(host, "web")
        release = real_vmms.label(host.vmm)
        assert done.actions == (f"moved the guest from {release} to {release}",)
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


@pytest.mark.parametrize("to", [pytest.param(path, id=f"to {real_vmms.label(path)}") for path in real_vmms.paths()])
def test_the_guest_goes_on_in_a_later_release(host: Host, to: str) -> None:
    if host.vmm == str(STAND_IN) or host.release >= real_vmms.release(to):
        pytest.skip("these are no two real releases, the later one last")
    needs_a_move(host)
    start(host)
    before = names(host)
    done = upgrade(host, "web", vmm=to, force=False)
    assert done.actions == (f"moved the guest from {real_vmms.label(host.vmm)} to {real_vmms.label(to)}",)
    assert one_guest_runs(host, before)["vmm_version"].startswith(real_vmms.label(to).removeprefix("v"))
    assert pvh_guest.BANNER not in (host.state_dir / "vms/web/serial.log").read_bytes()


def test_shared_memory_a_pause_and_a_socket(host: Host) -> None:
    needs_a_move(host)
    start(host, serial={"mode": "socket"}, memory={"size": "64MiB", "shared": True})
    host.ensure("web", state="paused", by_name=True)
    if host.release < (52, 0):
        with pytest.raises(MicrovmError, match="a VM that is paused can be handed over from Cloud Hypervisor v52.0 on"):
            upgrade(host, "web")
        assert host.info("web")["state"] == "paused"
        return
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
    monkeypatch.setattr(vmm_versions, "installed", lambda _runner, _vmm: (42, 0))
    with pytest.raises(MicrovmError, match=r"option 'vmm': runs in v.*, and v42\.0 is asked for"):
        upgrade(host, "web")
    host.ensure("web", state="stopped", by_name=True, grace=0)
    assert not upgrade(host, "web").changed


def test_a_vmm_that_dies_of_it_is_started_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = start(host)
    before = names(host)
    send = vm_migration.send

    def die(vm: Vm, *arguments: Any, **options: Any) -> tuple[bool, str]:
        os.kill(pid, signal.SIGKILL)
        return send(vm, *arguments, **options)

    monkeypatch.setattr(vm_migration, "send", die)
    lost = "the VMM died as it handed its VM over, and with it the guest(.|\n)*; it was started again from its disks$"
    with pytest.raises(MicrovmError, match=lost):
        upgrade(host, "web")
    assert one_guest_runs(host, before)["pid"] != pid


def test_a_vmm_that_cannot_send_keeps_its_guest(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the real one on a KVM without nested state, whatever is set for programs in Rust."""
    monkeypatch.setenv("RUST_BACKTRACE", "1")
    pid = start(host)
    before = names(host)
    try:
        upgrade(host, "web")
    except MicrovmError as error:
        assert "the guest runs on in the VMM that it was in" in str(error)
        assert one_guest_runs(host, before)["pid"] == pid
    else:
        assert one_guest_runs(host, before)["pid"] != pid


def test_a_new_vmm_that_dies_leaves_the_guest_where_it_is(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = start(host)
    before = names(host)
    make_room = handover.make_room

    def die(*arguments: Any) -> None:
        make_room(*arguments)
        os.kill(json.loads((host.run_dir / "web/vmm.next.pid").read_text())["pid"], signal.SIGKILL)

    monkeypatch.setattr(handover, "make_room", die)
    with pytest.raises(MicrovmError, match="the guest runs on in the VMM that it was in: the VMM (reports|refused)"):
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
    needs_a_move(host)
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
