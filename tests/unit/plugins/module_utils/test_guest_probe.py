# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import guest_probe

HERE = "127.0.0.1"


class Handler(BaseHTTPRequestHandler):
    """Answers /health, and nothing else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(b'{"status": "up"}')

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = HTTPServer((HERE, 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        return int(probe.getsockname()[1])


def test_a_port_that_is_open(port: int) -> None:
    assert guest_probe.tcp(HERE, port, None) is None
    assert guest_probe.tcp(HERE, port, "lo") is None


def test_a_port_that_is_closed() -> None:
    assert guest_probe.tcp(HERE, closed_port(), None) == f"{HERE}: Connection refused"
    assert guest_probe.http_answer(HERE, closed_port(), "/", 200, "", None) == f"{HERE}: Connection refused"


def test_a_tap_that_is_not_there(port: int) -> None:
    assert guest_probe.tcp(HERE, port, "nosuchtap") == f"{HERE}: No such device"


def test_what_http_answers(port: int) -> None:
    assert guest_probe.http_answer(HERE, port, "/health", 200, '"status": *"up"', "lo") is None
    assert guest_probe.http_answer(HERE, port, "/other", 200, "", None) == f"{HERE} answered 404"
    assert guest_probe.http_answer(HERE, port, "/other", 404, "", None) is None
    assert guest_probe.http_answer(HERE, port, "/health", 200, "down", None) == (
        f'{HERE} answered \'{{"status": "up"}}\''
    )


def test_what_is_no_http() -> None:
    with socket.socket() as server:
        server.bind((HERE, 0))
        server.listen()

        def answer() -> None:
            connection, _peer = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-x\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert str(guest_probe.http_answer(HERE, server.getsockname()[1], "/", 200, "", None)).startswith(f"{HERE}: ")
        thread.join()
