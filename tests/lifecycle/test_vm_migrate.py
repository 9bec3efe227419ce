# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps of a migration to a host in other namespaces. What sshd would run there is run without it; the molecule scenario has ssh.

On a KVM without nested state the real VMM dies as it sends its VM: then the guest is to be found again here.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pvh_guest
import pytest
from other_host import OtherHost
from vm_host import RUNNER, STAND_IN, Host
from waiting import until

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import migration_channel, tap, vm_migrate
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.migration_channel import Channel

NETS = [{"tap": "mitap-1", "mac": "02:63:00:00:00:01", "host_address": "10.251.2.1", "prefix": 30}]


@pytest.fixture
def other(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherHost]:
    other = OtherHost(tmp_path / "other", host.state_dir, host.run_dir)
    monkeypatch.setattr(Channel, "argv", lambda channel, word: other.receive(channel.paths.name, word))
    yield other
    other.close()


def step(here: Host, state: str, **options: Any) -> dict[str, Any]:
    """Do a step on this host."""
    item = {"name": "web", "state": state, **options}
    done = vm_migrate.ensure(item, state_dir=here.state_dir, run_dir=here.run_dir, runner=RUNNER)
    return dict(done.facts)


def there(other: OtherHost, state: str, **options: Any) -> dict[str, Any]:
    """Do a step on the other host."""
    return other.call("vm_migrate", "ensure", name="web", state=state, **options)


def start(host: Host, **options: Any) -> Path:
    """Start a VM with a disk of its own; wait until the guest has booted."""
    host.taps = ["mitap-1"]
    root = host.state_dir / "vms/web/root.raw"
    root.parent.mkdir(parents=True, exist_ok=True)
    root.write_bytes(b"mine".ljust(1 << 20, b"\0"))
    disks = [{"id": "root", "path": str(root), "image_type": "raw"}]
    host.ensure("web", **{"disks": disks, "nets": NETS, "memory": {"size": "64MiB"}, **options})
    log = host.state_dir / "vms/web/serial.log"
    until("the boot", lambda: pvh_guest.BANNER in log.read_bytes())
    return root


def offered(host: Host) -> dict[str, Any]:
    offer: dict[str, Any] = step(host, "offered")["offer"]
    return offer


SENT: dict[str, Any] = {"host": "other", "host_key": "ssh-ed25519 AAAA"}


def nothing_there(other: OtherHost) -> bool:
    return not any(other.sees(path / "web") for path in (other.state_dir / "vms", other.run_dir))


def runs_on_here(host: Host, other: OtherHost, pid: int) -> bool:
    """Whether the guest is here as it was, and all traces of the migration are gone."""
    info = host.info("web")
    left = {path.name for path in (host.state_dir / "vms/web").iterdir()}
    assert left <= {"vm.json", "life.json", "root.raw", "serial.log"}
    assert tap.has_carrier("mitap-1")
    return bool(info["state"] == "running" and info["pid"] == pid and nothing_there(other))


def test_the_guest_moves_with_its_disk(host: Host, other: OtherHost) -> None:
    if host.vmm != str(STAND_IN):
        pytest.skip("on a KVM without nested state, v53.0 dies of SIGSYS when it sends its VM; see the test of that")
    start(host)
    offer = offered(host)
    assert [Path(disk["path"]).name for disk in offer["copied"]] == ["root.raw"]
    ready = there(other, "ready", offer=offer)
    key, command = offer["public_key"], f"--state-dir {host.state_dir} --run-dir {host.run_dir} receive web"
    assert ready["authorized_key"] == f'command="/usr/local/bin/microvm {command}",restrict {key}'
    sent = step(host, "sent", offer=offer, **SENT)
    assert sent["left"]
    assert sent["paused_seconds"] > 0
    arrived = there(other, "arrived", offer=offer)
    assert (arrived["arrived"], arrived["state"]) == (True, "running")
    assert other.sees(host.state_dir / "vms/web/root.raw")
    # It has not booted there: its log has no banner.
    assert RUNNER.run([*other.enter, "cat", str(host.state_dir / "vms/web/serial.log")]).stdout == ""
    assert step(host, "left", offer=offer)["left"]
    assert sorted(path.name for path in (host.state_dir / "vms/web").iterdir()) == ["root.raw"]
    assert not tap.exists("mitap-1")
    assert not (host.run_dir / "web").exists()
    # The other host's own runs find nothing to do.
    options = host.options(
        "web", disks=[{"id": "root", "path": str(host.state_dir / "vms/web/root.raw"), "image_type": "raw"}]
    )
    again = other.call("vm_lifecycle", "ensure", **options, nets=NETS, memory={"size": "64MiB"})
    assert (again["restart_required"], again["state"]) == (False, "running")
    assert there(other, "arrived", offer=offer)["arrived"]


def test_a_disk_on_storage_that_is_shared_or_not(host: Host, other: OtherHost, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    disk = tmp_path / "shared/disk.raw"
    disk.write_bytes(bytes(1 << 20))
    start(host, disks=[{"id": "root", "path": str(disk), "image_type": "raw"}])
    pid = host.info("web")["pid"]
    offer = offered(host)
    assert (offer["copied"], offer["shared"]) == ([], [str(disk)])
    assert there(other, "ready", offer=offer)["authorized_key"]
    there(other, "abandoned")
    with pytest.raises(MicrovmError, match=r"option 'disks': '/nosuch' is not seen on this host"):
        there(other, "ready", offer={**offer, "shared": ["/nosuch"]})
    step(host, "stayed", offer=offer)
    assert sorted(path.name for path in disk.parent.iterdir()) == ["disk.raw"]
    (host.state_dir / "vms/web/root.raw").unlink()
    assert runs_on_here(host, other, pid)


def test_what_the_other_host_cannot_take(host: Host, other: OtherHost) -> None:
    start(host)
    pid = host.info("web")["pid"]
    offer = offered(host)
    refused = {
        "option 'vmm': the VM runs in v99": {**offer, "vmm_version": "99.0.0"},
        "option 'image': '/nosuch' is not on this host": {**offer, "files": {"/nosuch": 1}},
        "option 'state_dir': '/else/root.raw' does not lie in": {
            **offer,
            "copied": [{"path": "/else/root.raw", "size": 1, "allocated": 1}],
        },
        "option 'offer': is missing": {},
    }
    for message, wrong in refused.items():
        with pytest.raises(MicrovmError, match=message):
            there(other, "ready", offer=wrong)
    with pytest.raises(MicrovmError, match="was made for it is gone again"):
        options = {**offer["record"]["options"], "nets": [{"tap": "lo"}]}
        there(other, "ready", offer={**offer, "record": {**offer["record"], "options": options}})
    step(host, "stayed", offer=offer)
    assert runs_on_here(host, other, pid)


def test_a_vm_of_the_name_that_is_there_already_is_left_alone(host: Host, other: OtherHost) -> None:
    start(host)
    offer = offered(host)
    other.call("vm_lifecycle", "ensure", **host.options("web", state="present"))
    with pytest.raises(MicrovmError, match="option 'name': a VM of this name is on this host already"):
        there(other, "ready", offer=offer)
    there(other, "abandoned")
    assert other.sees(host.state_dir / "vms/web/vm.json")


@pytest.mark.parametrize("moment", ["waiting", "sending"])
def test_the_guest_runs_on_where_the_receiver_dies(
    host: Host, other: OtherHost, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    start(host)
    pid = host.info("web")["pid"]
    offer = offered(host)
    there(other, "ready", offer=offer)
    if moment == "waiting":
        os.kill(other.pid("web"), signal.SIGKILL)
    else:
        receiver, prepare = other.pid("web"), migration_channel.Tunnel.__init__

        def kill(tunnel: Any, *arguments: Any) -> None:
            prepare(tunnel, *arguments)
            os.kill(receiver, signal.SIGKILL)

        monkeypatch.setattr(migration_channel.Tunnel, "__init__", kill)
    with pytest.raises(MicrovmError, match="the guest was not handed over: the VMM reports"):
        step(host, "sent", offer=offer, **SENT)
    with pytest.raises(MicrovmError, match="the guest has not arrived"):
        there(other, "arrived", offer=offer)
    there(other, "abandoned")
    assert host.info("web")["state"] == "running"
    step(host, "stayed", offer=offer)
    assert runs_on_here(host, other, pid)


def test_a_guest_that_is_lost_is_started_again_here(
    host: Host, other: OtherHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What v53.0 does by itself on a KVM without nested state; the stand-in is killed at that point."""
    start(host)
    pid = host.info("web")["pid"]
    offer = offered(host)
    there(other, "ready", offer=offer)
    if host.vmm == str(STAND_IN):
        prepare = migration_channel.Tunnel.__init__

        def kill(tunnel: Any, *arguments: Any) -> None:
            prepare(tunnel, *arguments)
            os.kill(pid, signal.SIGKILL)

        monkeypatch.setattr(migration_channel.Tunnel, "__init__", kill)
    assert step(host, "sent", offer=offer, **SENT)["left"]
    with pytest.raises(MicrovmError, match="the guest has not arrived"):
        there(other, "arrived", offer=offer)
    # As long as that is not settled, no one starts it.
    with pytest.raises(MicrovmError, match="the VM is being moved to the host 'other', and may run there"):
        host.ensure("web", by_name=True)
    there(other, "abandoned")
    with pytest.raises(MicrovmError, match="did not arrive: it is lost; it was started again from its disks"):
        step(host, "stayed", offer=offer)
    assert runs_on_here(host, other, host.info("web")["pid"])
    assert host.info("web")["pid"] != pid


def test_only_a_guest_that_runs_is_offered(host: Host) -> None:
    host.ensure("web", state="present")
    with pytest.raises(MicrovmError, match="the VM is stopped: only a guest that runs or is paused can be migrated"):
        step(host, "offered")
    with pytest.raises(MicrovmError, match="option 'state': is missing: one of offered, ready, sent"):
        vm_migrate.ensure({"name": "web"}, state_dir=host.state_dir, run_dir=host.run_dir, runner=RUNNER)


def test_the_command_that_a_key_may_run_does_nothing_unasked(host: Host, other: OtherHost, tmp_path: Path) -> None:
    run = RUNNER.run(other.receive("web", "memory"), check=False)
    assert (run.returncode, "no VM of this name is expected here" in run.stderr) == (1, True)
    start(host)
    offer = offered(host)
    there(other, "ready", offer=offer)
    run = RUNNER.run(other.receive("web", "cat /etc/shadow"), check=False)
    assert (run.returncode, "is none of: memory, disks" in run.stderr) == (1, True)
    # An archive with more in it than the disks.
    (tmp_path / "root.raw").write_bytes(b"sent")
    (tmp_path / "vm.json").write_text("{}")
    RUNNER.run(["tar", "-C", str(tmp_path), "-cf", str(tmp_path / "all.tar"), "root.raw", "vm.json"])
    run = RUNNER.run(["sh", "-c", '"$@" <"$0"', str(tmp_path / "all.tar"), *other.receive("web", "disks")], check=False)
    assert run.returncode == 0, run.stderr
    record = json.loads(RUNNER.run([*other.enter, "cat", str(host.state_dir / "vms/web/vm.json")]).stdout)
    assert record["options"]["name"] == "web"
    assert RUNNER.run([*other.enter, "cat", str(host.state_dir / "vms/web/root.raw")]).stdout == "sent"
    there(other, "abandoned")
    step(host, "stayed", offer=offer)
