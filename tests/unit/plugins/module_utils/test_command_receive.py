# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import subprocess
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import (
    command_receive,
    disk_passes,
    vm_moving,
    vm_record,
)
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_moving import Move
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths

HEADER = disk_passes.HEADER


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "guest")
    paths = Paths.of("web", state_dir=tmp_path, run_dir=tmp_path / "run")
    paths.state.mkdir(parents=True)
    expect(paths)
    return paths


def expect(paths: Paths, **disk: str) -> None:
    """Have the VM expected, with a disk that is yet to come."""
    root = paths.state / "root.raw"
    root.touch()
    vm_moving.write(paths, Move("from", "other", backing=("/store/base.raw",)))
    disks = [{"id": "root", "path": str(root), "image_type": "Raw", **disk}]
    vm_record.write(paths, {"options": {}, "config": {"disks": disks}})


@contextmanager
def standard_streams(sent: bytes, answered: Path) -> Iterator[None]:
    """Have standard input and output be as sshd has them."""
    kept = os.dup(0), os.dup(1)
    incoming = answered.with_name("incoming")
    incoming.write_bytes(sent)
    with incoming.open("rb") as stdin, answered.open("wb") as stdout:
        os.dup2(stdin.fileno(), 0)
        os.dup2(stdout.fileno(), 1)
        try:
            yield
        finally:
            for number, descriptor in enumerate(kept):
                os.dup2(descriptor, number)
                os.close(descriptor)


def receive(paths: Paths, sent: bytes) -> str:
    """Receive what no VMM waits for; return why that ended."""
    arguments = Namespace(name="web", state_dir=paths.state_dir, run_dir=paths.run.parent)
    with standard_streams(sent, paths.state_dir / "answered"), pytest.raises(MicrovmError) as refused:
        command_receive.receive(arguments)
    return str(refused.value)


def block(content: bytes) -> bytes:
    return HEADER.pack(b"S", 0, len(content), 0) + HEADER.pack(b"B", 0, 0, len(content)) + content


def test_the_disks_come_first_and_are_answered_for(paths: Paths) -> None:
    sent = block(b"the disk") + HEADER.pack(b"P", 0, 0, 0) + disk_passes.END_OF_PASSES
    assert "no VMM waits for the guest" in receive(paths, sent)
    assert (paths.state / "root.raw").read_bytes() == b"the disk"
    assert (paths.state_dir / "answered").read_bytes() == disk_passes.TAKEN


def test_a_link_in_place_of_a_disk_is_not_followed(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (paths.state / "root.raw").unlink()
    (paths.state / "root.raw").symlink_to(tmp_path / "secret")
    assert "the disks were not taken" in receive(paths, block(b"mine"))
    assert (tmp_path / "secret").read_text() == "secret"


def test_no_memory_comes_before_an_image_is_seen_to_be_based_on_what_was_agreed(paths: Paths) -> None:
    expect(paths, image_type="Qcow2")
    for backing, told in (
        ("/etc/shadow", "is based on '/etc/shadow', of which nothing was said"),
        ("/store/base.raw", "no VMM waits"),
    ):
        image = paths.state / "image.qcow2"
        create = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", str(image), "1M"]
        subprocess.run(create, check=True)
        header = image.read_bytes()[:4096]
        assert told in receive(paths, block(header) + disk_passes.END_OF_PASSES)


def test_one_connection_at_a_time(paths: Paths) -> None:
    with command_receive._alone(paths):
        assert "the VM is being received already" in receive(paths, b"")


def test_a_vm_that_is_not_expected(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    vm_moving.write(paths, Move("to", "other"))
    assert "no VM of this name is expected here" in receive(paths, b"")
    vm_moving.clear(paths)
    assert "no VM of this name is expected here" in receive(paths, b"")
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "cat /etc/shadow")
    assert "'cat /etc/shadow' is not 'guest'" in receive(paths, b"")
