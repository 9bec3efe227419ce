# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What systemd is told, with a real socket in its place."""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import sd_notify
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    name = f"@sd-notify-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0"))
        yield listener


def test_a_message_is_read_when_the_call_returns(systemd: socket.socket) -> None:
    read: list[bytes] = []

    def listen() -> None:
        read.append(systemd.recv(100))
        message, (held,), _flags, _address = systemd.recvmsg(100, 100)
        read.append(message)
        os.close(array.array("i", held[2])[0])

    thread = threading.Thread(target=listen)
    thread.start()
    assert sd_notify.listens()
    sd_notify.tell("MAINPID=1")
    thread.join()
    assert read == [b"MAINPID=1", b"BARRIER=1"]


def test_one_that_is_not_read_is_told_of(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd_notify, "_SECONDS", 0.1)
    with pytest.raises(MicrovmError, match="systemd has not read 'MAINPID=1' within 0.1 seconds"):
        sd_notify.tell("MAINPID=1")
    systemd.close()
    with pytest.raises(MicrovmError, match="systemd cannot be told 'MAINPID=1': Connection refused"):
        sd_notify.tell("MAINPID=1")


def test_who_is_not_a_units_is_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not sd_notify.listens()
