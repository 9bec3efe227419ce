# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots and migration: what is refused, what is written, and what goes on where."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vmm_process import MIB, Call, Vmm, refused
from waiting import until

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_api import (
    VmmClient,
    VmmError,
    VmmUnreachable,
)

API = "Error from API"
SENDING = "Failed to send migratable component snapshot"
RECEIVING = "Failed to receive migratable component snapshot"
# KVM_GET_NESTED_STATE fails where the host's KVM is software without nested virtualization: v53.0 then refuses every
# snapshot, and its migration fails; with RUST_BACKTRACE set it dies of SIGSYS while it spells the error.
NO_NESTED_STATE = "GetNestedState"


def snapshot_or_skip(vmm: Vmm, directory: Path) -> None:
    """Snapshot the paused VM; where this machine's KVM cannot, see that the guest is unharmed, and say so."""
    directory.mkdir(exist_ok=True)
    try:
        vmm.client.snapshot(f"file://{directory}")
    except VmmError as error:
        if NO_NESTED_STATE not in error.causes[-1]:
            raise
        assert not any(directory.iterdir())
        vmm.client.act("resume")
        assert vmm.state == "Running"
        pytest.skip(f"{vmm.executable} cannot snapshot on this KVM: {error.causes[-1].splitlines()[0]}")


class Receiver:
    """A VMM that waits for a migration, and the answer that it gives in the end."""

    def __init__(self, vmm: Vmm, url: str) -> None:
        self.vmm = vmm
        self.url = url
        self.answer: tuple[int, str] | OSError | None = None
        self.thread = threading.Thread(target=self._receive, daemon=True)
        self.thread.start()
        until("the receiver", lambda: "vm migration-receive-ready" in vmm.events())

    def _receive(self) -> None:
        try:
            self.answer = self.vmm.raw("PUT", "vm.receive-migration", json.dumps({"receiver_url": self.url}))
        except OSError as error:
            self.answer = error

    def result(self) -> Any:
        """Return the answer to vm.receive-migration."""
        self.thread.join(20)
        return self.answer


def receiver(start_vmm: Callable[..., Vmm], url: str = "unix:{directory}/migration") -> Receiver:
    vmm = start_vmm()
    return Receiver(vmm, url.format(directory=vmm.directory))


def migrate_or_skip(sender: Vmm, to: Receiver) -> None:
    """Migrate; where this machine's KVM cannot, see that sender and receiver say so, and skip."""
    sender.client.send_migration(to.url)
    answer = to.result()
    if answer[0] != 204:
        skip_after_sigsys(sender)
    assert answer == (204, "")
    assert sender.wait() == 0


def skip_after_sigsys(sender: Vmm) -> None:
    """Skip where the sender dies of SIGSYS or says why it cannot send, as on a KVM without nested state."""
    until("the sender", lambda: sender.process.poll() is not None or "vm migration-failed" in sender.events())
    if sender.process.poll() == -signal.SIGSYS or NO_NESTED_STATE in (sender.directory / "output").read_text():
        pytest.skip(f"{sender.executable} cannot send its VM on this KVM")


REFUSED: list[tuple[str, Call, str, tuple[str, ...]]] = [
    ("url", lambda vmm: vmm.restore("/nosuch"), "", ("Cannot restore VM", SENDING, "Could not extract path from URL")),
    ("no directory", lambda vmm: vmm.restore("file:///nosuch"), "", ("Cannot restore VM", SENDING, "Destination is")),
    (
        "no snapshot",
        lambda vmm: vmm.restore("file:///proc"),
        "",
        ("Cannot restore VM", RECEIVING, 'Error opening VM config snapshot file "/proc/config.json"', "No such file"),
    ),
    (
        "nowhere",
        lambda vmm: vmm.receive_migration("nowhere"),
        "",
        (RECEIVING, "Invalid receive migration configuration", "Error validating receive migration parameters"),
    ),
    (
        "no port",
        lambda vmm: vmm.receive_migration("tcp:127.0.0.1"),
        "",
        (RECEIVING, "Invalid receive migration configuration", "Error validating receive migration parameters"),
    ),
    (
        "not bindable",
        lambda vmm: vmm.receive_migration("unix:/nosuch/socket"),
        "",
        (RECEIVING, "Error binding to UNIX socket", "No such file or directory (os error 2)"),
    ),
    ("nothing to send", lambda vmm: vmm.send_migration("unix:/nosuch"), "", (SENDING, "VM is not running")),
    ("restore beside", lambda vmm: vmm.restore("file:///proc"), "running", ("VM is already created",)),
    (
        "receive beside",
        lambda vmm: vmm.receive_migration("unix:/nosuch"),
        "running",
        (RECEIVING, "Can't receive a migration when a VM is already created"),
    ),
    (
        "send nowhere",
        lambda vmm: vmm.send_migration("nowhere"),
        "running",
        (SENDING, "Invalid send migration configuration", "Error validating send migration parameters"),
    ),
    (
        "not shared",
        lambda vmm: vmm.send_migration("unix:/nosuch", local=True),
        "running",
        (SENDING, "Local migration requires shared memory or hugepages enabled"),
    ),
    (
        "snapshot of a running VM",
        lambda vmm: vmm.snapshot("file:///nosuch"),
        "running",
        ("Cannot snapshot VM", "Failed to snapshot migratable component", "Trying to snapshot while VM is running"),
    ),
]


@pytest.mark.parametrize(("call", "state", "causes"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_refused(vmm: Vmm, call: Call, state: str, causes: tuple[str, ...]) -> None:
    if state:
        vmm.boot()
    status, found = refused(call, vmm)
    assert (status, found[0], len(found)) == (500, API, len(causes) + 2)
    for cause, start in zip(found[2:], causes, strict=True):
        assert cause.startswith(start)


MALFORMED = [
    ("vm.snapshot", {}, "missing field `destination_url`"),
    ("vm.restore", {}, "missing field `source_url`"),
    (
        "vm.restore",
        {"source_url": "x", "memory_restore_mode": "x"},
        "unknown variant `x`, expected `Copy` or `OnDemand`",
    ),
    ("vm.receive-migration", {}, "missing field `receiver_url`"),
    ("vm.send-migration", {}, "missing field `destination_url`"),
    ("vm.send-migration", {"destination_url": "x", "timeout_s": 0}, "integer `0`, expected a nonzero u64"),
    ("vm.send-migration", {"destination_url": "x", "timeout_strategy": "x"}, "expected `Cancel` or `Ignore`"),
]


@pytest.mark.parametrize(("call", "body", "word"), MALFORMED)
def test_malformed_requests(vmm: Vmm, call: str, body: dict[str, object], word: str) -> None:
    status, text = vmm.raw("PUT", call, json.dumps(body))
    assert status == 400
    assert word in text


@pytest.mark.parametrize("url", ["unix:/nosuch", "tcp:127.0.0.1:1"])
def test_the_guest_runs_on_where_nobody_receives(vmm: Vmm, url: str) -> None:
    with vmm.boot_on_socket() as guest:
        vmm.client.send_migration(url)
        until("the migration's end", lambda: vmm.events()[-2:] == ["vm migration-started", "vm migration-failed"])
        until("the VM", lambda: vmm.state == "Running")
        guest.sendall(b"y")
        assert guest.recv(1) == b"y"


def test_a_vmm_that_waits_answers_nothing_else_and_needs_a_kill(vmm: Vmm) -> None:
    waiting = Receiver(vmm, f"unix:{vmm.directory}/migration")
    with pytest.raises(VmmUnreachable, match="within 0.2 seconds"):
        VmmClient(str(vmm.socket), timeout=0.2).ping()
    vmm.process.kill()
    vmm.process.wait()
    assert isinstance(waiting.result(), OSError)


def test_a_receiver_whose_sender_is_gone_says_so(vmm: Vmm) -> None:
    waiting = Receiver(vmm, f"unix:{vmm.directory}/migration")
    with socket.socket(socket.AF_UNIX) as sender:
        sender.connect(f"{vmm.directory}/migration")
    status, causes = waiting.result()
    assert (status, json.loads(causes)[:3]) == (500, [API, "Error receiving migration", "Socket error"])
    assert vmm.client.ping()["pid"] == vmm.process.pid


def test_a_snapshot_is_three_files_and_makes_the_same_guest(vmm: Vmm) -> None:
    with vmm.boot_on_socket():
        vmm.client.add("disk", {"id": "more", "path": vmm.image("more.img")})
        vmm.client.resize(vcpus=2)
        vmm.client.act("pause")
        snapshot = vmm.directory / "snapshot"
        snapshot_or_skip(vmm, snapshot)
    assert vmm.state == "Paused"
    assert sorted(os.listdir(snapshot)) == ["config.json", "memory-ranges", "state.json"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in snapshot.iterdir())
    info = vmm.client.info()
    vmm.client.act("resume")
    vmm.client.act("pause")
    assert refused(lambda client: client.snapshot(f"file://{snapshot}"), vmm)[1][-1] == "File exists (os error 17)"
    vmm.client.act("delete")
    vmm.client.restore(f"file://{snapshot}")
    assert vmm.state == "Paused"
    restored = vmm.client.info()
    assert (restored["config"], restored["device_tree"].keys()) == (info["config"], info["device_tree"].keys())
    vmm.client.act("resume")
    with vmm.serial_socket() as guest:
        guest.sendall(b"y")
        assert guest.recv(1) == b"y"
    assert vmm.events()[-6:-2] == ["vm shutdown", "vm deleted", "vm restoring", "vm restored"]


def test_a_damaged_snapshot_makes_no_vm(vmm: Vmm) -> None:
    vmm.boot()
    vmm.client.act("pause")
    snapshot = vmm.directory / "snapshot"
    snapshot_or_skip(vmm, snapshot)
    vmm.client.act("delete")
    memory = snapshot / "memory-ranges"
    os.truncate(memory, memory.stat().st_size // 2)
    assert refused(lambda client: client.restore(f"file://{snapshot}"), vmm)[0] == 500
    assert refused(lambda client: client.info(), vmm)[0] == 404
    vmm.boot()


@pytest.mark.parametrize("url", ["unix:{directory}/migration", "tcp:127.0.0.1:48123"])
def test_a_guest_moves_with_its_disk(vmm: Vmm, start_vmm: Callable[..., Vmm], url: str) -> None:
    vmm.boot(disks=[{"path": vmm.image("disk.img")}])
    to = receiver(start_vmm, url)
    migrate_or_skip(vmm, to)
    assert to.vmm.state == "Running"
    assert vmm.events()[-4:] == ["vm migration-started", "vm migration-finished", "vm deleted", "vmm shutdown"]
    assert to.vmm.events()[-1] == "vm migration-receive-finished"
    assert not vmm.socket.exists()
    # The lock on the image has moved too.
    disk = {"path": str(vmm.directory / "disk.img")}
    assert refused(lambda client: client.add("disk", disk), to.vmm)[1][-1] == "The file is already locked"


def test_a_paused_guest_arrives_paused(vmm: Vmm, start_vmm: Callable[..., Vmm]) -> None:
    vmm.boot(memory={"size": 64 * MIB, "shared": True})
    vmm.client.act("pause")
    to = receiver(start_vmm)
    migrate_or_skip(vmm, to)
    assert to.vmm.state == "Paused"
    to.vmm.client.act("resume")


def test_a_guest_runs_on_where_the_receiver_cannot_have_its_disk(vmm: Vmm, start_vmm: Callable[..., Vmm]) -> None:
    vmm.boot(disks=[{"path": vmm.image("disk.img")}])
    to = receiver(start_vmm)
    (vmm.directory / "disk.img").rename(vmm.directory / "elsewhere.img")
    vmm.client.send_migration(to.url)
    assert to.result()[0] == 500
    skip_after_sigsys(vmm)
    until("the VM", lambda: vmm.events()[-1] == "vm migration-failed" and vmm.state == "Running")
    assert refused(lambda client: client.info(), to.vmm)[0] == 404


def test_a_guest_runs_on_where_the_receiver_dies(vmm: Vmm, start_vmm: Callable[..., Vmm]) -> None:
    with vmm.boot_on_socket() as guest:
        to = receiver(start_vmm)
        to.vmm.process.send_signal(signal.SIGSTOP)
        vmm.client.send_migration(to.url)
        until("the start", lambda: vmm.events()[-1] == "vm migration-started")
        for action in ("pause", "shutdown", "reboot"):
            status, causes = refused(lambda client, action=action: client.act(action), vmm)
            assert (status, causes[-1]) == (500, "VM is currently migrating and can't be modified")
        assert vmm.state == "Running"
        to.vmm.process.kill()
        until("the failure", lambda: vmm.events()[-1] == "vm migration-failed" and vmm.state == "Running")
        guest.sendall(b"y")
        assert guest.recv(1) == b"y"
