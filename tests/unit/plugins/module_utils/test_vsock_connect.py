# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's side of a vsock, with a unix socket in the VMM's place that speaks as Cloud Hypervisor's docs/vsock.md has it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vsock_connect import connect, proxy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vsock.sock"


def serving(path: Path, answer: Callable[[socket.socket, bytes], None]) -> threading.Thread:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _peer = listener.accept()
        with listener, connection:
            answer(connection, connection.recv(100))

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_what_follows_the_answer_is_the_guest_s(path: Path) -> None:
    asked = []

    def answer(connection: socket.socket, line: bytes) -> None:
        asked.append(line)
        connection.sendall(b"OK 1073741824\nSSH-2.0-x\r\n")

    thread = serving(path, answer)
    with connect(path, 22) as connection:
        assert connection.recv(100) == b"SSH-2.0-x\r\n"
    thread.join()
    assert asked == [b"CONNECT 22\n"]


def test_both_ways_until_both_have_ended(path: Path) -> None:
    def answer(connection: socket.socket, _line: bytes) -> None:
        connection.sendall(b"OK 1\n")
        heard = b""
        while more := connection.recv(100):
            heard += more
        connection.sendall(b"heard " + heard)

    thread = serving(path, answer)
    source_out, source_in = os.pipe()
    sink_out, sink_in = os.pipe()
    os.write(source_in, b"this")
    os.close(source_in)
    proxy(path, 22, source_out, sink_in)
    assert os.read(sink_out, 100) == b"heard this"
    thread.join()
    for descriptor in (source_out, sink_out, sink_in):
        os.close(descriptor)


def test_where_nothing_listens(path: Path) -> None:
    thread = serving(path, lambda connection, _line: connection.close())
    with pytest.raises(MicrovmError, match="nothing in the guest listens on vsock port 23"):
        connect(path, 23)
    thread.join()
    path.unlink()
    with pytest.raises(MicrovmError, match="No such file or directory"):
        connect(path, 22)
    thread = serving(path, lambda connection, _line: connection.sendall(b"HTTP/1.1 400\n"))
    with pytest.raises(MicrovmError, match="is no vsock of a VM"):
        connect(path, 22)
    thread.join()
