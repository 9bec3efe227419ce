# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changes of VMs that run. The tiny guest never lets go of a device that is unplugged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vm_host import RUNNER, Host

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import qemu_img, tap, vm_disks, vm_live
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_state import Vm
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_api import VmmClient

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_live, "UNPLUG_SECONDS", 0.2)


@pytest.fixture
def real(host: Host) -> Iterator[Host]:
    """The real VMM alone: the stand-in refuses by name what the test is about."""
    if "qemu_vmm" in host.vmm:
        pytest.skip("the stand-in does not emulate this, and says so")
    yield host


def image(host: Host, name: str, size: int = MIB) -> str:
    path = host.payload.parent / name
    with path.open("wb") as file:
        file.truncate(size)
    return str(path)


def disk(host: Host, name: str, **options: Any) -> dict[str, Any]:
    return {"id": name, "path": image(host, name), "image_type": "raw", **options}


def changed(host: Host, *, state: str = "running", **options: Any) -> tuple[str, ...]:
    """Ask for a VM in check mode and then really; check that both say the same and that a third run changes nothing."""
    before = host.info("web")
    asked = host.ensure("web", check_mode=True, state=state, **options)
    assert host.info("web")["config"] == before["config"], "check mode changed something"
    done = host.ensure("web", state=state, **options)
    assert done.actions == asked.actions
    assert (done.before, done.after) == (asked.before, asked.after)
    again = host.ensure("web", state=state, **options)
    assert not again.changed, again.actions
    assert again.facts["restart_reasons"] == done.facts["restart_reasons"] or done.facts["restart_reasons"] == []
    return done.actions


def test_what_the_vmm_fills_in_is_no_drift(host: Host) -> None:
    host.taps = ["lvtap-1"]
    options: dict[str, Any] = {
        "cpus": {
            "boot": 2,
            "max": 2,
            "topology": {
                n: 1 if n != "packages" else 2
                for n in ("threads_per_core", "cores_per_die", "dies_per_package", "packages")
            },
        },
        "memory": {"size": "128MiB", "hotplug_size": "256MiB", "thp": False, "prefault": True},
        "disks": [disk(host, "root", serial="r"), disk(host, "data", readonly=True, direct=False, num_queues=2)],
        "nets": [{"tap": "lvtap-1", "num_queues": 4, "mtu": 1400}],
        "serial": {"mode": "pty"},
        "console": {"mode": "pty"},
        "vsock": {"cid": 33},
        "balloon": {"size": "16MiB", "deflate_on_oom": True},
        "platform": {"serial_number": "s", "uuid": "9d3b3eb4-0c9f-4d2c-8d6c-4f3f6d0c1f61", "oem_strings": ["x"]},
        "watchdog": True,
        "pvpanic": True,
    }
    assert host.ensure("web", **options).facts["restart_reasons"] == []
    again = host.ensure("web", **options)
    assert (again.changed, again.actions, again.facts["restart_reasons"]) == (False, (), [])
    assert not host.ensure("web", apply="restart", **options).changed


def test_vcpus_and_memory_within_their_bounds(host: Host) -> None:
    memory = {"size": "128MiB", "hotplug_size": "256MiB"}
    pid = host.ensure("web", cpus={"max": 4}, memory=memory).facts["pid"]
    options: dict[str, Any] = {"cpus": {"boot": 3, "max": 4}, "memory": {**memory, "size": "256MiB"}}
    assert changed(host, **options) == (
        "recorded what is asked",
        "set cpus.boot to 3",
        f"set memory.size to {256 * MIB}",
    )
    info = host.info("web")
    assert (info["pid"], info["config"]["cpus"]["boot_vcpus"]) == (pid, 3)
    assert info["config"]["memory"]["size"] == 256 * MIB


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cpus": {"boot": 3, "max": 3}}, "cpus.boot is 1, not 3: it has booted with cpus.max: 2"),
        (
            {"memory": {"size": "192MiB"}},
            f"memory.size is {128 * MIB}, not {192 * MIB}: it comes in units of {128 * MIB} bytes",
        ),
        (
            {"memory": {"size": "1GiB"}},
            f"memory.size is {128 * MIB}, not {1 << 30}: it has booted with memory.hotplug_size",
        ),
        (
            {"memory": {"size": "64MiB"}},
            f"memory.size is {128 * MIB}, not {64 * MIB}: with memory.hotplug_method: acpi",
        ),
        ({"watchdog": True}, "watchdog is False, not True"),
        ({"balloon": {}}, "balloon is missing, not another: a balloon comes and goes at a boot only"),
        ({"rng": {"src": "/dev/zero"}}, "rng.src is '/dev/urandom', not '/dev/zero'"),
        ({"platform": {"oem_strings": ["x"]}}, "platform.oem_strings is missing, not another"),
    ],
    ids=["vcpus", "unit", "too much", "less", "watchdog", "balloon", "rng", "platform"],
)
def test_what_needs_a_restart_waits_for_one(host: Host, options: dict[str, Any], reason: str) -> None:
    base: dict[str, Any] = {"cpus": {"max": 2}, "memory": {"size": "128MiB", "hotplug_size": "256MiB"}}
    first = host.ensure("web", **base)
    memory = {**base["memory"], **options.get("memory", {})}
    asked = {**base, **options, "memory": memory}
    waiting = host.ensure("web", **asked)
    assert (waiting.facts["pid"], waiting.facts["restart_required"]) == (first.facts["pid"], True)
    assert any(found.startswith(reason) for found in waiting.facts["restart_reasons"]), waiting.facts["restart_reasons"]
    assert not host.ensure("web", **asked).changed
    done = host.ensure("web", apply="restart", **asked)
    assert (done.actions, done.facts["restart_required"]) == (("stop", "start", "boot"), False)
    assert not host.ensure("web", apply="restart", **asked).changed


def test_with_apply_none_nothing_is_changed(host: Host) -> None:
    host.ensure("web", cpus={"max": 2})
    for _run in range(2):
        done = host.ensure("web", cpus={"boot": 2, "max": 2}, apply="none")
        assert done.facts["restart_reasons"] == ["cpus.boot is 1, not 2"]
    assert host.info("web")["config"]["cpus"]["boot_vcpus"] == 1
    present = host.ensure("web", cpus={"boot": 2, "max": 2}, state="present")
    assert (present.changed, present.facts["restart_required"]) == (False, True)


def test_both_kinds_of_changes_at_once(host: Host) -> None:
    host.ensure("web", cpus={"max": 2})
    pid = host.info("web")["pid"]
    asked: dict[str, Any] = {"cpus": {"boot": 2, "max": 2}, "watchdog": True}
    done = host.ensure("web", **asked)
    assert done.actions == ("recorded what is asked", "set cpus.boot to 2")
    assert (done.facts["pid"], done.facts["restart_reasons"]) == (pid, ["watchdog is False, not True"])
    assert (done.before, done.after) == ({"state": "running", "cpus.boot": 1}, {"state": "running", "cpus.boot": 2})
    restarted = host.ensure("web", apply="restart", **asked)
    assert restarted.actions == ("stop", "start", "boot")
    assert host.info("web")["config"]["watchdog"] is True


def test_disks_come_and_go(host: Host) -> None:
    root, data, more = disk(host, "root"), disk(host, "data"), disk(host, "more", readonly=True)
    host.ensure("web", disks=[root])
    assert changed(host, disks=[root, data, more]) == ("recorded what is asked", "plugged in data", "plugged in more")
    assert [found["id"] for found in host.info("web")["config"]["disks"]] == ["root", "data", "more"]
    gone = host.ensure("web", disks=[root, more])
    assert gone.actions == ("recorded what is asked", "unplugged data")
    assert [found["id"] for found in host.info("web")["config"]["disks"]] == ["root", "more"]
    # This guest keeps it until it is started anew.
    left = host.ensure("web", disks=[root, more])
    assert (left.changed, left.facts["restart_reasons"]) == (
        False,
        ["data was unplugged, and the guest has not let go of it"],
    )
    back = host.ensure("web", disks=[root, more, data])
    assert any("has not let go of the device of this name" in reason for reason in back.facts["restart_reasons"])
    assert host.ensure("web", disks=[root, more, data], apply="restart").facts["restart_reasons"] == []


def test_a_data_disk_grows_where_ch_disks_leaves_it_to_ch_vm(host: Host) -> None:
    def built(size: str) -> Outcome:
        item = {"name": "web", "image": image(host, "base"), "data": [{"name": "main", "size": size}]}
        return vm_disks.ensure(item, state_dir=host.state_dir, runner=RUNNER, sources=vm_disks.Sources())

    before = built("8MiB").facts["disks"]
    if host.release < (51, 0):
        with pytest.raises(
            MicrovmError, match="option 'disks.root': the image is based on .*base', which is a raw one"
        ):
            host.ensure("web", disks=before)
        assert not any(host.run_dir.glob("*"))
        return
    host.ensure("web", disks=before)
    assert not host.ensure("web", disks=before).changed
    left = built("16MiB")
    assert not left.changed
    assert f"set the size of data-main to {16 * MIB}" in changed(host, disks=left.facts["disks"])
    assert qemu_img.size_of(Path(before[-1]["path"]), "qcow2") == 16 * MIB
    assert not built("16MiB").changed and not host.ensure("web", disks=left.facts["disks"]).changed
    root = {**before[0], "size": "16MiB"}
    with pytest.raises(MicrovmError, match="option 'disks.root.size'.* grows no image that is based on another"):
        host.ensure("web", disks=[root, *left.facts["disks"][1:]])


def test_a_disk_grows_and_never_shrinks(host: Host) -> None:
    root, data = disk(host, "root"), disk(host, "data")
    host.ensure("web", disks=[root, {**data, "size": "1MiB"}])
    bigger = [root, {**data, "size": "2MiB"}]
    if host.release < (50, 0):
        with pytest.raises(
            MicrovmError, match="option 'disks.data.size'.*growing it needs Cloud Hypervisor v50.0 or later"
        ):
            host.ensure("web", disks=bigger)
        assert (host.payload.parent / "data").stat().st_size == MIB
        return
    assert changed(host, disks=bigger) == ("recorded what is asked", f"set the size of data to {2 * MIB}")
    assert (host.payload.parent / "data").stat().st_size == 2 * MIB
    with pytest.raises(
        MicrovmError, match="option 'disks.data.size'.*what is at the end of a disk that becomes smaller"
    ):
        host.ensure("web", disks=[root, {**data, "size": "1MiB"}])
    host.ensure("web", state="stopped", by_name=True, grace=0)
    with pytest.raises(MicrovmError, match="what is at the end of a disk that becomes smaller"):
        host.ensure("web", disks=[root, {**data, "size": "1MiB"}])
    started = host.ensure("web", disks=[root, {**data, "size": "3MiB"}])
    assert started.actions[-1] == f"set the size of data to {3 * MIB}"
    assert (host.payload.parent / "data").stat().st_size == 3 * MIB


@pytest.mark.parametrize("apply", ["live", "restart"])
def test_another_root_disk_is_refused_while_the_vm_runs(host: Host, apply: str) -> None:
    root, other = disk(host, "root"), disk(host, "other")
    host.ensure("web", disks=[root])
    for disks in ([{**root, "path": other["path"]}], [other], []):
        with pytest.raises(MicrovmError, match="option 'disks.root.*it is the root disk, which a VM that runs keeps"):
            host.ensure("web", disks=disks, apply=apply, check_mode=True)
        with pytest.raises(MicrovmError, match="it is the root disk"):
            host.ensure("web", disks=disks, apply=apply)
    assert host.info("web")["config"]["disks"][0]["path"] == root["path"]
    assert host.ensure("web", disks=[root]).facts["restart_reasons"] == []
    swapped = host.ensure("web", disks=[other], state="restarted")
    assert (swapped.facts["state"], host.info("web")["config"]["disks"][0]["id"]) == ("running", "other")


def test_nics_come_with_their_taps(host: Host) -> None:
    host.taps = ["lvtap-2", "lvtap-3"]
    one = {"tap": "lvtap-2", "mac": "02:63:00:00:00:02"}
    two = {"tap": "lvtap-3", "mac": "02:63:00:00:00:03", "host_address": "10.251.0.9", "prefix": 30}
    host.ensure("web", nets=[one])
    assert changed(host, nets=[one, two]) == ("recorded what is asked", "plugged in net1")
    assert tap.has_carrier("lvtap-3")
    gone = host.ensure("web", nets=[one])
    assert gone.actions == ("recorded what is asked", "unplugged net1")
    # The guest still has it, so that its TAP stays until the VM is started anew.
    assert tap.exists("lvtap-3")
    host.ensure("web", nets=[one], state="restarted")
    assert (tap.exists("lvtap-2"), tap.exists("lvtap-3")) == (True, False)


def test_what_cannot_be_plugged_in_leaves_nothing(host: Host) -> None:
    host.taps = ["lvtap-4"]
    host.ensure("web")
    with pytest.raises(MicrovmError, match="option 'disks.data': '/nonsense' is not there"):
        host.ensure("web", disks=[{"id": "data", "path": "/nonsense"}])
    nets = [{"tap": "lvtap-4"}]
    with pytest.raises(MicrovmError, match="the VMM refused vm.add-disk") as caught:
        host.ensure("web", disks=[{"id": "data", "path": str(host.payload.parent)}], nets=nets)
    assert caught.value.option is None
    assert not tap.exists("lvtap-4")
    assert host.info("web")["config"].get("disks", []) in ([], None)
    assert host.ensure("web").facts["restart_reasons"] == []


def test_options_of_a_device_change_with_replug_only(host: Host) -> None:
    root, data = disk(host, "root"), disk(host, "data")
    host.ensure("web", disks=[root, data])
    asked = [root, {**data, "serial": "new"}]
    waiting = host.ensure("web", disks=asked)
    assert waiting.facts["restart_reasons"] == [
        "disks.data.serial is missing, not 'new': it would have to be plugged anew, which is done live with replug: true only"
    ]
    # The guest does not let go of it, so that it cannot come back: what was done is said, and the next run goes on.
    planned = host.ensure("web", disks=asked, replug=True, check_mode=True)
    assert planned.actions == ("unplugged data", "plugged in data")
    with pytest.raises(MicrovmError, match="done before: unplugged data"):
        host.ensure("web", disks=asked, replug=True)
    assert "data" in " ".join(host.ensure("web", disks=asked, replug=True).facts["restart_reasons"])
    assert host.ensure("web", disks=asked, apply="restart").facts["restart_reasons"] == []
    assert host.info("web")["config"]["disks"][1]["serial"] == "new"


def test_a_balloon_and_a_paused_vm(host: Host) -> None:
    host.ensure("web", balloon={"size": 0})
    host.ensure("web", balloon={"size": 0}, state="paused")
    assert changed(host, state="paused", balloon={"size": "16MiB"}) == (
        "recorded what is asked",
        f"set balloon.size to {16 * MIB}",
    )
    info = host.info("web")
    assert (info["state"], info["config"]["balloon"]["size"]) == ("paused", 16 * MIB)


def test_a_vsock_comes_and_goes(host: Host) -> None:
    host.ensure("web")
    done = host.ensure("web", vsock={"cid": 44})
    assert done.actions == ("recorded what is asked", "plugged in vsock")
    assert (host.run_dir / "web/vsock.sock").is_socket()
    assert not host.ensure("web", vsock={"cid": 44}).changed
    assert host.ensure("web", vsock={"cid": 45}).facts["restart_reasons"][0].startswith("vsock.cid is 44, not 45")
    assert host.ensure("web").actions[-1].startswith("unplugged")


def test_pmem_comes(real: Host) -> None:
    real.ensure("web")
    pmem = [{"id": "p", "file": image(real, "pmem", 128 * MIB)}]
    assert changed(real, pmem=pmem) == ("recorded what is asked", "plugged in p")
    assert real.ensure("web").actions[-1] == "unplugged p"


def test_rate_limits(real: Host) -> None:
    root, data = disk(real, "root"), disk(real, "data", rate_limit={"bandwidth": "1MiB", "ops": 100, "ops_burst": 10})
    real.ensure("web", disks=[root, data])
    assert not real.ensure("web", disks=[root, data]).changed
    slower = {**data, "rate_limit": {"ops": 50}}
    reasons = real.ensure("web", disks=[root, slower]).facts["restart_reasons"]
    assert reasons[0].startswith("disks.data.rate_limit is another, not another: it would have to be plugged anew")


def test_virtio_mem_gives_and_takes(real: Host) -> None:
    memory = {"size": "128MiB", "hotplug_size": "256MiB", "hotplug_method": "virtio_mem"}
    real.ensure("web", memory=memory)
    for size in ("256MiB", "192MiB", "128MiB"):
        assert changed(real, memory={**memory, "size": size})[-1].startswith("set memory.size to")
    reasons = real.ensure("web", memory={**memory, "size": "64MiB"}).facts["restart_reasons"]
    assert "it has booted with" in reasons[0]


def test_zones_of_memory(real: Host) -> None:
    def zones(size: str) -> dict[str, Any]:
        zone = {"id": "a", "size": size, "hotplug_size": "256MiB"}
        return {"hotplug_method": "virtio_mem", "zones": [zone, {"id": "b", "size": "128MiB"}]}

    real.ensure("web", memory=zones("128MiB"))
    assert changed(real, memory=zones("256MiB")) == ("recorded what is asked", f"set the size of a to {256 * MIB}")
    more = {"hotplug_method": "virtio_mem", "zones": [{"id": "a", "size": "128MiB"}]}
    assert "zones come and go at a boot only" in real.ensure("web", memory=more).facts["restart_reasons"][0]


def test_a_release_that_lacks_something_is_named_before_anything_is_made(host: Host) -> None:
    old = host.payload.parent / "old-vmm"
    old.write_text("#!/bin/sh\necho cloud-hypervisor v47.0\n")
    old.chmod(0o755)
    for options, message in (
        ({"cpus": {"nested": False}}, "option 'cpus.nested': needs Cloud Hypervisor v50.0 or later, and this is v47.0"),
        (
            {"disks": [disk(host, "a", size="2MiB")]},
            f"option 'disks.a.size': disks.a.size is {MIB}, not {2 * MIB}: growing it needs Cloud Hypervisor v50.0",
        ),
        ({"cpus": {"boot": 1, "max": 300}}, "option 'cpus.max': 300 needs Cloud Hypervisor v48.0 or later"),
        ({"rtc": {}}, "option 'rtc': needs Cloud Hypervisor v53.0"),
    ):
        with pytest.raises(MicrovmError, match=message):
            host.ensure("web", vmm=str(old), **options)
    assert not any(host.run_dir.glob("*"))
    assert Vm.of("web", state_dir=host.state_dir, run_dir=host.run_dir, runner=RUNNER).supervisor.pid() is None


def test_a_vmm_that_is_older_than_its_binary_is_restarted_for_what_it_lacks(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    if host.release < (50, 0):
        pytest.skip("the release is as old as the one that is made believe")
    host.ensure("web", cpus={"max": 2})
    told = VmmClient.ping
    monkeypatch.setattr(VmmClient, "ping", lambda client: {**told(client), "version": "49.0.0"})
    asked: dict[str, Any] = {"cpus": {"boot": 2, "max": 2, "nested": False}}
    reasons = host.ensure("web", **asked).facts["restart_reasons"]
    lacking = "option 'cpus.nested': needs Cloud Hypervisor v50.0 or later, and this is v49.0"
    assert reasons == [f"cpus.boot is 1, not 2: {lacking}", "cpus.nested is True, not False"]
    monkeypatch.undo()
    assert host.ensure("web", **asked).actions == ("set cpus.boot to 2",)


def test_a_vm_that_was_created_and_not_booted_is_made_anew(host: Host) -> None:
    host.ensure("web", cpus={"max": 2})
    client = Vm.of("web", state_dir=host.state_dir, run_dir=host.run_dir, runner=RUNNER).client()
    client.act("shutdown")
    assert host.info("web")["state"] == "created"
    done = host.ensure("web", cpus={"boot": 2, "max": 2})
    assert done.actions == ("recorded what is asked", "stop", "start", "boot")
    assert host.info("web")["config"]["cpus"]["boot_vcpus"] == 2
