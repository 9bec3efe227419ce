# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's side of vsock, with real unix sockets: what a VMM does with a guest's connections."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vsock_notify import Listener, credential


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with Listener(tmp_path / "vsock.sock") as listener:
        listener.open()
        yield listener


def connect(listener: Listener) -> socket.socket:
    guest = socket.socket(socket.AF_UNIX)
    guest.connect(str(listener.path))
    return guest


def test_the_guest_is_told_the_port_of_the_socket(tmp_path: Path) -> None:
    port = credential().rpartition(":")[2]
    assert credential() == f"io.systemd.credential:vmm.notify_socket=vsock-stream:2:{port}"
    assert Listener(tmp_path / "vsock.sock").path == tmp_path / f"vsock.sock_{port}"


def test_ready_is_heard_once_its_message_is_whole(listener: Listener) -> None:
    assert not listener.ready()
    with connect(listener) as other:
        other.sendall(b"X_SYSTEMD_UNIT_ACTIVE=network.target\nSTATUS=READY=1 soon\n")
    assert not listener.ready()
    with connect(listener) as guest:
        guest.sendall(b"STATUS=Startup finished\nREA")
        assert not listener.ready()
        guest.sendall(b"DY=1\n")
    assert listener.ready()
    assert listener.ready(), "and stays so"


def test_a_guest_that_sends_without_end_is_cut_off(listener: Listener) -> None:
    with connect(listener) as guest:
        guest.sendall(b"x" * 5000)
        listener.ready()
        listener.ready()
        with pytest.raises(OSError):
            for _attempt in range(100):
                guest.sendall(b"x" * 5000)
                listener.ready()


def test_only_the_owner_can_report(listener: Listener) -> None:
    assert stat.S_IMODE(listener.path.stat().st_mode) == 0o600
    listener.close()
    assert not listener.path.exists()


def test_what_a_dead_run_left_is_replaced(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "vsock.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(listener.path))
    with listener:
        listener.open()
        with connect(listener) as guest:
            guest.sendall(b"READY=1")
        assert listener.ready()


def test_a_path_that_is_too_long_is_refused() -> None:
    with pytest.raises(MicrovmError, match="run_dir"):
        Listener(Path("/") / ("x" * 100) / "vsock.sock")


def test_no_other_file_is_given_to_the_owner_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"")
    run = tmp_path / "run"
    run.mkdir()
    os.chown(run, 4242, 4242)
    chown = os.chown

    def change_meanwhile(path: Path, *arguments: int, **options: bool) -> None:
        path.unlink()
        path.symlink_to(secret)
        chown(path, *arguments, **options)

    monkeypatch.setattr(os, "chown", change_meanwhile)
    with Listener(run / "vsock.sock") as listener:
        listener.open()
    assert (secret.stat().st_uid, stat.S_IMODE(secret.stat().st_mode)) == (0, 0o644)
