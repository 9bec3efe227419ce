# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps of a migration to a host in other namespaces. What sshd would run there is run without it; the molecule scenario has ssh.

On a KVM without nested state v53.0 cannot send its VM: then the guest stays here.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pvh_guest
import pytest
from other_host import OtherHost
from vm_host import RUNNER, STAND_IN, Host
from waiting import until

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import (
    disk_passes,
    migration_channel,
    tap,
    vm_migrate,
    vm_send,
)
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.migration_channel import Channel
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_api import VmmClient

NETS = [{"tap": "mitap-1", "mac": "02:63:00:00:00:01", "host_address": "10.251.2.1", "prefix": 30}]


@pytest.fixture
def other(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherHost]:
    other = OtherHost(tmp_path / "other", host.state_dir, host.run_dir)
    monkeypatch.setattr(Channel, "argv", lambda channel: other.receive(channel.paths.name))
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


def ready(host: Host, other: OtherHost, offer: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Have the other host wait for the VM, with the VMM and the guest that this one has. Skip where it cannot."""
    if offer.get("copied") and host.release < (52, 0):
        pytest.skip(
            "releases before v52.0 do not migrate a guest that is paused, as it is for its disks; see the test of that"
        )
    return there(other, "ready", offer=offer, **{"vmm": host.vmm, "directories": [str(host.payload.parent)], **options})


def start(host: Host, *, size: int = 1 << 20, **options: Any) -> Path:
    """Start a VM with a disk of its own, random bytes; wait until the guest has booted."""
    host.taps = ["mitap-1"]
    root = host.state_dir / "vms/web/root.raw"
    root.parent.mkdir(parents=True, exist_ok=True)
    root.write_bytes(os.urandom(size))
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


def only_the_stand_in(host: Host) -> None:
    if host.vmm != str(STAND_IN):
        pytest.skip("on a KVM without nested state, v53.0 cannot send its VM")


def test_the_guest_moves_with_its_disk(host: Host, other: OtherHost) -> None:
    only_the_stand_in(host)
    start(host)
    offer = offered(host)
    assert [Path(disk["path"]).name for disk in offer["copied"]] == ["root.raw"]
    prepared = ready(host, other, offer)
    key, command = offer["public_key"], f"--state-dir {host.state_dir} --run-dir {host.run_dir} receive web"
    line = re.sub(r'expiry-time="\d{14}",', "", prepared["authorized_key"])
    assert line == f'command="/usr/local/bin/microvm {command}",restrict {key}'
    sent = step(host, "sent", offer=offer, **SENT)
    assert sent["left"]
    assert sent["paused_seconds"] > 0
    assert sent["copied_bytes"] == [1 << 20, 0]
    # It runs there before anyone asks.
    assert other.call("vm_facts", "gather", name="web")["state"] == "running"
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
    shared = {"directories": [str(host.payload.parent), str(disk.parent)]}
    with pytest.raises(MicrovmError, match=r"option 'disks.path': .*disk.raw' lies in none of the directories"):
        ready(host, other, offer)
    assert ready(host, other, offer, **shared)["authorized_key"]
    there(other, "abandoned")
    disk.rename(disk.with_name("gone"))
    with pytest.raises(MicrovmError, match=r"option 'disks': .*disk.raw' is not seen on this host"):
        ready(host, other, offer, **shared)
    disk.with_name("gone").rename(disk)
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
        "option 'disks': '/else/root.raw' is among the disks": {
            **offer,
            "copied": [{"path": "/else/root.raw", "size": 1, "allocated": 1}],
        },
        "option 'offer': is missing": {},
    }
    for message, wrong in refused.items():
        with pytest.raises(MicrovmError, match=message):
            ready(host, other, wrong)
    with pytest.raises(MicrovmError, match="was made for it is gone again"):
        ready(host, other, {**offer, "record": {**offer["record"], "nets": [{"tap": "lo"}]}})
    step(host, "stayed", offer=offer)
    assert runs_on_here(host, other, pid)


def test_a_vm_of_the_name_that_is_there_already_is_left_alone(host: Host, other: OtherHost) -> None:
    start(host)
    offer = offered(host)
    other.call("vm_lifecycle", "ensure", **host.options("web", state="present"))
    with pytest.raises(MicrovmError, match="option 'name': a VM of this name is on this host already"):
        ready(host, other, offer)
    there(other, "abandoned")
    assert other.sees(host.state_dir / "vms/web/vm.json")


def test_a_disk_that_is_there_without_a_vm_is_left_alone(host: Host, other: OtherHost) -> None:
    root = start(host)
    offer = offered(host)
    RUNNER.run([*other.enter, "mkdir", "-p", str(root.parent)])
    RUNNER.run([*other.enter, "touch", str(root)])
    with pytest.raises(MicrovmError, match=r"option 'disks': '.*root.raw' is on this host, and no VM"):
        ready(host, other, offer)
    there(other, "abandoned")
    assert other.sees(root)
    step(host, "stayed", offer=offer)


@pytest.mark.parametrize("moment", ["waiting", "sending"])
def test_the_guest_runs_on_where_the_receiver_dies(
    host: Host, other: OtherHost, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    start(host)
    pid = host.info("web")["pid"]
    offer = offered(host)
    ready(host, other, offer)
    if moment == "waiting":
        os.kill(other.pid("web"), signal.SIGKILL)
    else:
        receiver, prepare = other.pid("web"), migration_channel.Tunnel.__init__

        def kill(tunnel: Any, *arguments: Any) -> None:
            prepare(tunnel, *arguments)
            os.kill(receiver, signal.SIGKILL)

        monkeypatch.setattr(migration_channel.Tunnel, "__init__", kill)
    with pytest.raises(MicrovmError, match="the guest was not handed over: the VMM (reports|refused)"):
        step(host, "sent", offer=offer, **SENT)
    with pytest.raises(MicrovmError, match="the guest has not arrived"):
        there(other, "arrived", offer=offer)
    there(other, "abandoned")
    assert host.info("web")["state"] == "running"
    step(host, "stayed", offer=offer)
    assert runs_on_here(host, other, pid)


def digests(host: Host, other: OtherHost) -> tuple[str, str]:
    """Return the digests of the disk here and there."""
    sum_of = ["sha256sum", str(host.state_dir / "vms/web/root.raw")]
    here, away = RUNNER.run(sum_of).stdout.split()[0], RUNNER.run([*other.enter, *sum_of]).stdout.split()[0]
    return here, away


@pytest.mark.parametrize("direct", [False, True])
def test_what_is_written_while_the_disk_is_sent_arrives(
    host: Host, other: OtherHost, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    only_the_stand_in(host)
    path = host.state_dir / "vms/web/root.raw"
    start(host, size=160 << 20, disks=[{"id": "root", "path": str(path), "image_type": "raw", "direct": direct}])
    offer = offered(host)
    ready(host, other, offer)
    stopped, act = threading.Event(), VmmClient.act

    def write() -> None:
        while not stopped.wait(0.002):
            with path.open("r+b") as file:
                file.seek(random.randrange(8 << 20))  # noqa: S311
                file.write(os.urandom(100))

    def pause(client: VmmClient, action: Any) -> None:
        if action == "pause" and sending.is_alive():
            stopped.set()
            sending.join()
        act(client, action)

    sending = threading.Thread(target=write)
    movable = vm_send._require_the_same

    def begin(*arguments: Any) -> None:
        movable(*arguments)
        sending.start()

    monkeypatch.setattr(vm_send, "_require_the_same", begin)
    monkeypatch.setattr(VmmClient, "act", pause)
    sent = step(host, "sent", offer=offer, **SENT)
    assert sent["copied_bytes"][0] == 160 << 20
    # One more while it ran, since so much was sent; what was written after that went while it stood still.
    assert len(sent["copied_bytes"]) == 3
    assert 0 < sent["copied_bytes"][2] <= 9 << 20
    here, away = digests(host, other)
    assert here == away
    there(other, "arrived", offer=offer)
    step(host, "left", offer=offer)


def in_the_pass(number: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Have something happen amid a pass."""
    passes, send_pass = iter(range(1, 10)), disk_passes.send_pass

    def patched(sources: Any, send: Any) -> int:
        this = next(passes)

        def half(frame: bytes) -> None:
            send(frame)
            if this == number:
                act()

        return send_pass(sources, half)

    monkeypatch.setattr(disk_passes, "send_pass", patched)


def test_a_vmm_that_moves_no_guest_that_is_paused_copies_no_disks(host: Host, other: OtherHost) -> None:
    start(host)
    old = {**offered(host), "vmm_version": "51.2.0"}
    with pytest.raises(MicrovmError, match=r"option 'disks': its disks would be copied, .* runs in v51\.2"):
        there(other, "ready", offer=old, vmm=str(STAND_IN), directories=[str(host.payload.parent)])
    step(host, "stayed", offer=old)


@pytest.mark.parametrize("moment", ["the first pass", "the last pass", "the memory"])
def test_the_guest_goes_on_where_the_run_that_sends_it_is_killed(
    host: Host, other: OtherHost, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    start(host)
    pid = host.info("web")["pid"]
    offer = offered(host)
    ready(host, other, offer)

    def die(*_arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        if moment == "the memory":
            patched.setattr(migration_channel.Connection, "carry_memory", die)
        else:
            in_the_pass(1 if moment == "the first pass" else 2, patched, die)
        run = multiprocessing.get_context("fork").Process(
            target=step, args=(host, "sent"), kwargs={"offer": offer, **SENT}
        )
        run.start()
        run.join(30)
    assert run.exitcode == -signal.SIGKILL
    until("the guest to go on", lambda: host.info("web")["state"] == "running")
    there(other, "abandoned")
    # It is as if it had never begun, and can begin anew.
    offer = offered(host)
    assert offer["state"] == "running"
    step(host, "stayed", offer=offer)
    assert runs_on_here(host, other, pid)


@pytest.mark.parametrize("number", [1, 2])
def test_the_guest_goes_on_where_the_connection_is_cut(
    host: Host, other: OtherHost, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    start(host)
    pid = host.info("web")["pid"]
    offer = offered(host)
    ready(host, other, offer)
    connections: list[migration_channel.Connection] = []
    connect = migration_channel.Connection.__init__

    def noted(connection: migration_channel.Connection, *arguments: Any, **options: Any) -> None:
        connect(connection, *arguments, **options)
        connections.append(connection)

    def cut() -> None:
        connections[0].cut()

    monkeypatch.setattr(migration_channel.Connection, "__init__", noted)
    in_the_pass(number, monkeypatch, cut)
    with pytest.raises(MicrovmError, match="the disks could not be copied to 'other': it said nothing"):
        step(host, "sent", offer=offer, **SENT)
    assert host.info("web")["state"] == "running"
    there(other, "abandoned")
    step(host, "stayed", offer=offer)
    assert runs_on_here(host, other, pid)


def test_a_host_that_takes_nothing_does_not_hold_the_guest(
    host: Host, other: OtherHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(host)
    offer = offered(host)
    ready(host, other, offer)
    monkeypatch.setattr(Channel, "argv", lambda _channel: ["sleep", "30"])
    with pytest.raises(MicrovmError, match="could not be copied to 'other': it took nothing for too long"):
        step(host, "sent", offer=offer, timeout=1, **SENT)
    assert host.info("web")["state"] == "running"
    there(other, "abandoned")
    step(host, "stayed", offer=offer)


def test_a_vm_that_was_changed_since_it_was_offered_is_not_sent(host: Host, other: OtherHost) -> None:
    root = start(host)
    offer = offered(host)
    ready(host, other, offer)
    disks = [{"id": "root", "path": str(root), "image_type": "raw"}]
    host.ensure("web", disks=disks, nets=NETS, memory={"size": "64MiB"}, labels={"new": "one"})
    with pytest.raises(MicrovmError, match="the VM was changed since it was offered"):
        step(host, "sent", offer=offer, **SENT)
    there(other, "abandoned")
    step(host, "stayed", offer=offer)


def test_what_a_host_that_was_broken_into_offers(host: Host, other: OtherHost) -> None:
    start(host)
    offer = offered(host)
    refused = {
        "option 'payload.kernel': '/etc/shadow' lies in none": {"payload": {"kernel": "/etc/shadow"}},
        "option 'rng.src': '/etc/shadow' lies in none": {"rng": {"src": "/etc/shadow"}},
        "option 'serial.file': '/etc/cron.d/x' lies in none": {"serial": {"mode": "file", "file": "/etc/cron.d/x"}},
        "option 'offer': is none that state=offered returns: value of restart": {"restart": "no\nUser=root"},
        "option 'limits': needs a unit": {"limits": {"cpu_quota": "10%"}},
    }
    for message, options in refused.items():
        with pytest.raises(MicrovmError, match=message):
            ready(host, other, {**offer, "record": {**offer["record"], **options}})
    with pytest.raises(MicrovmError, match="option 'memory': the VM does not fit"):
        ready(host, other, offer, capacity={"memory_ratio": 0.000001})
    # The VMM is the other host's own, whatever is on record here.
    with pytest.raises(MicrovmError, match="option 'vmm': '/nosuch/vmm' is not installed"):
        ready(host, other, offer, vmm="/nosuch/vmm")
    assert nothing_there(other)
    step(host, "stayed", offer=offer)


def test_a_guest_that_comes_with_more_than_was_agreed_on_does_not_run(host: Host, other: OtherHost) -> None:
    only_the_stand_in(host)
    start(host)
    offer = offered(host)
    ready(host, other, offer)
    record = str(host.state_dir / "vms/web/vm.json")
    RUNNER.run([*other.enter, "sed", "-i", f"s#{host.payload}#/agreed#", record])
    step(host, "sent", offer=offer, **SENT)
    assert other.call("vm_facts", "gather", name="web")["state"] == "paused"
    with pytest.raises(MicrovmError, match=f"option 'payload.kernel': the guest came with '{host.payload}'"):
        there(other, "arrived", offer=offer)
    there(other, "abandoned")
    assert nothing_there(other)
    with pytest.raises(MicrovmError, match="it was started again from its disks"):
        step(host, "stayed", offer=offer)


def test_another_host_saying_so_removes_no_vm_here(host: Host) -> None:
    start(host)
    host.ensure("web", state="stopped", by_name=True, grace=0)
    with pytest.raises(MicrovmError, match="the VM is stopped here and was not sent anywhere"):
        step(host, "left")
    assert host.info("web")["state"] == "stopped"


def test_a_guest_that_is_lost_is_started_again_here(
    host: Host, other: OtherHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its VMM is killed as it sends its VM."""
    start(host)
    pid = host.info("web")["pid"]
    offer = offered(host)
    ready(host, other, offer)
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


def test_the_command_that_a_key_may_run_does_nothing_unasked(host: Host, other: OtherHost) -> None:
    run = RUNNER.run(other.receive("web"), check=False)
    assert (run.returncode, "no VM of this name is expected here" in run.stderr) == (1, True)
    start(host)
    offer = offered(host)
    ready(host, other, offer)
    run = RUNNER.run(other.receive("web", "cat /etc/shadow"), check=False)
    assert (run.returncode, "'cat /etc/shadow' is not 'guest'" in run.stderr) == (1, True)
    there(other, "abandoned")
    step(host, "stayed", offer=offer)
