# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots of VMs in real VMMs. Where a VMM cannot write memory on this machine, that is told, and disks alone are used."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pvh_guest
import pytest
import real_vmms
from vm_host import RUNNER, Host
from waiting import until

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import (
    snapshot_disks,
    vm_restore,
    vm_snapshot,
)
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import Completed, HostRunner
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_state import Vm
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_api import VmmClient
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_process import wait_for_end

MEMORY = "64MiB"


def call(host: Host, work: Callable[..., Outcome], name: str, **options: Any) -> Outcome:
    check_mode = options.pop("check_mode", False)
    item = {"name": name, **options}
    return work(item, state_dir=host.state_dir, run_dir=host.run_dir, runner=RUNNER, check_mode=check_mode)


def take(host: Host, name: str, **options: Any) -> Outcome:
    return call(host, vm_snapshot.ensure, name, **options)


def take_memory(host: Host, name: str, **options: Any) -> Outcome:
    """Take a snapshot with memory; skip where this machine's KVM does not let the real VMM write it."""
    try:
        return take(host, name, **options)
    except MicrovmError as error:
        if "GetNestedState" not in str(error):
            raise
        assert host.info(name)["state"] == "running", "the guest runs on"
        assert snapshots(host, name) == []
        pytest.skip("this KVM lacks KVM_GET_NESTED_STATE, without which v53.0 writes no memory")


def snapshots(host: Host, name: str) -> list[str]:
    """List all that is there, hidden or not."""
    directory = host.state_dir / "snapshots" / name
    return sorted(os.listdir(directory)) if directory.exists() else []


def disk(host: Host, name: str, content: bytes) -> Path:
    """Make a root disk as ch_disks does, where the VM's disks are."""
    path = host.state_dir / "vms" / name / "root.raw"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.ljust(1 << 20, b"\0"))
    return path


def start(host: Host, name: str, path: Path, **options: Any) -> Outcome:
    disks = [{"id": "root", "path": str(path), "image_type": "raw"}]
    return host.ensure(name, disks=disks, memory={"size": MEMORY}, **options)


def booted(host: Host, name: str) -> bool:
    """Whether the guest has booted since its VMM was started, by its serial log, which each VMM begins anew."""
    return pvh_guest.BANNER in (host.state_dir / "vms" / name / "serial.log").read_bytes()


def wait_boot(host: Host, name: str) -> None:
    until("the guest's boot", lambda: booted(host, name))


def test_memory_and_disks_come_back(host: Host) -> None:
    root = disk(host, "web", b"then")
    first = start(host, "web", root)
    wait_boot(host, "web")
    assert take(host, "web", snapshot="s", check_mode=True).actions == ("made s",)
    assert snapshots(host, "web") == []
    made = take_memory(host, "web", snapshot="s")
    assert (made.changed, made.actions) == (True, ("made s",))
    assert made.facts["paused_seconds"] > 0
    assert (host.info("web")["state"], host.info("web")["pid"]) == ("running", first.facts["pid"])
    assert not take(host, "web", snapshot="s").changed
    directory = host.state_dir / "snapshots/web/s"
    assert sorted(os.listdir(directory)) == ["disks", "manifest.json", "vm"]
    assert directory.stat().st_mode & 0o777 == 0o700

    root.write_bytes(b"now".ljust(1 << 20, b"\0"))
    assert call(host, vm_restore.restore, "web", snapshot="s", check_mode=True).changed
    assert host.info("web")["pid"] == first.facts["pid"]
    back = call(host, vm_restore.restore, "web", snapshot="s")
    assert back.actions == ("restored s",)
    assert root.read_bytes().startswith(b"then")
    assert host.info("web")["state"] == "running"
    assert not booted(host, "web"), "the guest went on and did not boot"
    again = start(host, "web", root)
    assert (again.changed, again.facts["restart_required"]) == (False, False)

    call(host, vm_restore.restore, "web", snapshot="s", memory=False)
    wait_boot(host, "web")


def test_disks_alone_of_a_vm_that_runs_and_of_one_that_is_stopped(host: Host) -> None:
    root = disk(host, "web", b"then")
    start(host, "web", root)
    assert take(host, "web", snapshot="runs", memory=False).facts["snapshot"]["memory"] is False
    assert host.info("web")["state"] == "running"
    host.ensure("web", by_name=True, state="stopped", grace=0)
    assert take(host, "web", snapshot="stopped").facts["snapshot"]["memory"] is False
    with pytest.raises(MicrovmError, match="option 'memory': a VM that is stopped has no memory"):
        take(host, "web", snapshot="no", memory=True)
    root.write_bytes(b"now".ljust(1 << 20, b"\0"))
    call(host, vm_restore.restore, "web", snapshot="runs")
    assert root.read_bytes().startswith(b"then")
    wait_boot(host, "web")
    with pytest.raises(MicrovmError, match="is of the disks alone"):
        call(host, vm_restore.restore, "web", snapshot="runs", memory=True)


def test_a_paused_vm_stays_paused(host: Host) -> None:
    start(host, "web", disk(host, "web", b""), state="paused")
    take(host, "web", snapshot="s", memory=False)
    assert host.info("web")["state"] == "paused"


def test_only_the_newest_stay(host: Host) -> None:
    host.ensure("web", state="present", disks=[{"id": "root", "path": str(disk(host, "web", b""))}])
    for name in ("a", "b", "c"):
        take(host, "web", snapshot=name)
    assert take(host, "web", snapshot="d", keep=2).actions == ("made d", "removed a", "removed b")
    assert snapshots(host, "web") == ["c", "d"]
    assert take(host, "web", state="absent", snapshot="d", check_mode=True).actions == ("removed d",)
    assert take(host, "web", state="absent", snapshot="d").changed
    assert not take(host, "web", state="absent", snapshot="d").changed
    assert take(host, "web", state="absent", keep=0).actions == ("removed c",)
    assert not (host.state_dir / "snapshots").exists()
    with pytest.raises(MicrovmError, match="option 'snapshot': is missing"):
        take(host, "web", state="absent")


def test_what_cannot_be_trusted_is_refused_and_nothing_is_touched(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    root = disk(host, "web", b"then")
    pid = start(host, "web", root).facts["pid"]
    take(host, "web", snapshot="s", memory=False)
    copy = host.state_dir / "snapshots/web/s/disks/root"
    manifest = host.state_dir / "snapshots/web/s/manifest.json"
    whole = manifest.read_text()

    def refused(message: str, **options: Any) -> None:
        with pytest.raises(MicrovmError, match=message):
            call(host, vm_restore.restore, "web", **{"snapshot": "s", **options})
        assert host.info("web")["pid"] == pid

    refused("has no snapshot 'other' that is whole; it has: s", snapshot="other")
    copy.write_bytes(b"else".ljust(1 << 20, b"\0"))
    refused("is not what was written, by its digest")
    os.truncate(copy, 5)
    refused("has 5 bytes, and 1048576 were written", verify=False)
    copy.unlink()
    refused("is not there", verify=False)
    manifest.write_text(json.dumps({**json.loads(whole), "vmm_version": "42.0.0", "files": {}}))
    refused(f"was written by Cloud Hypervisor v42.0, and .* is {real_vmms.label(host.vmm)}")
    manifest.write_text(whole[:100])
    refused("has no snapshot 's' that is whole; it has: none")

    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(snapshot_disks.os, "statvfs", lambda _path: Full)
    with pytest.raises(
        MicrovmError, match=r"option 'state_dir': the snapshot takes up to \d+ MiB, and .* has 0 MiB free"
    ):
        take(host, "web", snapshot="more")
    assert snapshots(host, "web") == ["s"]
    assert host.info("web")["state"] == "running"


class DiesAtTheCopy(HostRunner):
    """A run that is killed while it copies a disk."""

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        if argv[0] == "cp":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(argv, **options)


def test_a_run_that_was_killed_leaves_what_the_next_one_clears(host: Host) -> None:
    pid = start(host, "web", disk(host, "web", b"")).facts["pid"]
    item = {"name": "web", "snapshot": "s", "memory": False}
    places = {"state_dir": host.state_dir, "run_dir": host.run_dir, "runner": DiesAtTheCopy()}
    killed = multiprocessing.get_context("fork").Process(target=vm_snapshot.ensure, args=(item,), kwargs=places)
    killed.start()
    killed.join(20)
    assert killed.exitcode == -signal.SIGKILL
    assert host.info("web")["state"] == "paused"
    assert vm_snapshot.gather({"name": "web"}, state_dir=host.state_dir).facts["snapshots"] == []
    again = take(host, "web", snapshot="s", memory=False)
    assert again.actions == (
        "resumed the guest that a run which did not end had paused",
        "removed .new.s, which was not finished",
        "made s",
    )
    assert (host.info("web")["state"], host.info("web")["pid"]) == ("running", pid)
    assert snapshots(host, "web") == ["s"]


def test_a_copy_that_fails_leaves_nothing_and_the_guest_runs_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    start(host, "web", disk(host, "web", b""))

    def fail(*_arguments: object) -> None:
        raise MicrovmError("no space left on the device")

    monkeypatch.setattr(snapshot_disks, "copy", fail)
    with pytest.raises(MicrovmError, match="no space left"):
        take(host, "web", snapshot="s", memory=False)
    assert host.info("web")["state"] == "running"
    assert snapshots(host, "web") == []


def test_a_vmm_that_dies_in_the_middle_is_started_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As v53.0 does of SIGSYS where RUST_BACKTRACE is set and it spells an error."""
    pid = start(host, "web", disk(host, "web", b"")).facts["pid"]
    vm = Vm.of("web", state_dir=host.state_dir, run_dir=host.run_dir)
    snapshot = VmmClient.snapshot

    def die(client: VmmClient, url: str) -> None:
        os.kill(pid, signal.SIGSYS)
        wait_for_end(vm.supervisor, 10)
        snapshot(client, url)

    monkeypatch.setattr(VmmClient, "snapshot", die)
    with pytest.raises(MicrovmError, match="the VMM died while the snapshot was made, and with it the guest") as caught:
        take(host, "web", snapshot="s")
    assert str(caught.value).endswith("it was started again from its disks")
    assert snapshots(host, "web") == []
    info = host.info("web")
    assert (info["state"], info["vmm_died"]) == ("running", False)
    assert info["pid"] != pid


def test_a_guest_that_cannot_be_restored_is_started_from_the_disks(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    root = disk(host, "web", b"then")
    start(host, "web", root)
    take_memory(host, "web", snapshot="s")
    root.write_bytes(b"now".ljust(1 << 20, b"\0"))
    restore = VmmClient.restore

    def damage(client: VmmClient, url: str) -> None:
        os.truncate(url.removeprefix("file://") + "/memory-ranges", 100)
        restore(client, url)

    monkeypatch.setattr(VmmClient, "restore", damage)
    with pytest.raises(
        MicrovmError, match=r"the guest could not be restored \(.*\); it was started again from its disks"
    ):
        call(host, vm_restore.restore, "web", snapshot="s")
    assert root.read_bytes().startswith(b"then")
    assert host.info("web")["state"] == "running"
    wait_boot(host, "web")


def test_a_clone_has_the_disks_and_nothing_else(host: Host) -> None:
    start(host, "web", disk(host, "web", b"then"))
    (host.state_dir / "vms/web/disks.json").write_text('{"root": {"mode": "reflink", "image": "/base.raw"}}')
    take(host, "web", snapshot="s", memory=False)
    source = {"name": "web", "snapshot": "s"}
    assert call(host, vm_restore.clone, "copy", source=source, check_mode=True).changed
    assert not (host.state_dir / "vms/copy").exists()
    assert call(host, vm_restore.clone, "copy", source=source).actions == ("cloned the disks from web/s",)
    assert sorted(os.listdir(host.state_dir / "vms/copy")) == ["disks.json", "root.raw"]
    assert (host.state_dir / "vms/copy/root.raw").read_bytes().startswith(b"then")
    record = json.loads((host.state_dir / "vms/copy/disks.json").read_text())
    assert record == {"root": {"mode": "reflink", "image": "/base.raw", "cloned_from": "web/s"}}
    assert not call(host, vm_restore.clone, "copy", source=source).changed
    start(host, "copy", host.state_dir / "vms/copy/root.raw")
    with pytest.raises(MicrovmError, match="is there and is no copy from web/other"):
        call(host, vm_restore.clone, "copy", source={"name": "web", "snapshot": "other"})
    with pytest.raises(MicrovmError, match="option 'source': is missing"):
        call(host, vm_restore.clone, "other")
