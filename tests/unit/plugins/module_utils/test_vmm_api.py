# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The client against an HTTP server on a unix socket; tests/vmm_contract holds it against VMMs."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("requests_unixsocket")

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_api import (
    VmmClient,
    VmmError,
    VmmUnreachable,
    cause_chain,
)


class Vmm(socketserver.ThreadingUnixStreamServer):
    """Answers every request with ``status`` and ``body``, and notes what was asked."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        self.status = 204
        self.body = ""
        self.requests: list[tuple[str, str, Any]] = []
        super().__init__(path, Handler)


class Handler(BaseHTTPRequestHandler):
    server: Vmm

    def answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path, json.loads(sent) if sent else None))
        self.send_response(self.server.status)
        if self.server.body:
            self.send_header("Content-Length", str(len(self.server.body.encode())))
        self.end_headers()
        self.wfile.write(self.server.body.encode())

    do_GET = do_PUT = answer

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def directory() -> Iterator[Path]:
    # pytest's tmp_path may be longer than a unix socket's path can be.
    path = Path(tempfile.mkdtemp(prefix="Vmm api"))  # upper case and a blank: the URL must carry them
    yield path
    shutil.rmtree(path)


@pytest.fixture
def vmm(directory: Path) -> Iterator[Vmm]:
    with Vmm(str(directory / "api.sock")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(vmm: Vmm) -> VmmClient:
    return VmmClient(str(vmm.server_address), timeout=5)


@contextlib.contextmanager
def raw_listener(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Accept one connection and let ``serve`` do with it what it wants."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            connection, _address = listener.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield
        thread.join()


REQUESTS: list[tuple[Callable[[VmmClient], object], tuple[str, str, Any]]] = [
    (lambda vmm: vmm.ping(), ("GET", "vmm.ping", None)),
    (lambda vmm: vmm.info(), ("GET", "vm.info", None)),
    (lambda vmm: vmm.counters(), ("GET", "vm.counters", None)),
    (lambda vmm: vmm.vmm_shutdown(), ("PUT", "vmm.shutdown", None)),
    (lambda vmm: vmm.create({"payload": {"kernel": "/k"}}), ("PUT", "vm.create", {"payload": {"kernel": "/k"}})),
    (lambda vmm: vmm.act("boot"), ("PUT", "vm.boot", None)),
    (lambda vmm: vmm.act("power-button"), ("PUT", "vm.power-button", None)),
    (lambda vmm: vmm.resize(vcpus=2), ("PUT", "vm.resize", {"desired_vcpus": 2})),
    (
        lambda vmm: vmm.resize(memory=1 << 30, balloon=0),
        ("PUT", "vm.resize", {"desired_ram": 1 << 30, "desired_balloon": 0}),
    ),
    (lambda vmm: vmm.resize_disk("_disk0", 4096), ("PUT", "vm.resize-disk", {"id": "_disk0", "desired_size": 4096})),
    (lambda vmm: vmm.add("disk", {"path": "/d"}), ("PUT", "vm.add-disk", {"path": "/d"})),
    (lambda vmm: vmm.add("net", {}), ("PUT", "vm.add-net", {})),
    (lambda vmm: vmm.remove_device("_net1"), ("PUT", "vm.remove-device", {"id": "_net1"})),
    (lambda vmm: vmm.snapshot("file:///s"), ("PUT", "vm.snapshot", {"destination_url": "file:///s"})),
    (
        lambda vmm: vmm.restore("file:///s", prefault=True),
        ("PUT", "vm.restore", {"source_url": "file:///s", "prefault": True}),
    ),
]


@pytest.mark.parametrize(("call", "expected"), REQUESTS, ids=[request[1][1] for request in REQUESTS])
def test_requests(vmm: Vmm, client: VmmClient, call: Callable[[VmmClient], object], expected: Any) -> None:
    if expected[0] == "GET":
        vmm.status, vmm.body = 200, '{"state": "Running", "config": {}}'
    call(client)
    method, path, body = expected
    assert vmm.requests == [(method, f"/api/v1/{path}", body)]


def test_answers(vmm: Vmm, client: VmmClient) -> None:
    assert client.add("disk", {"path": "/d"}) is None
    vmm.status, vmm.body = 200, '{"id": "_disk1", "bdf": "0000:00:05.0"}'
    assert client.add("disk", {"path": "/d"}) == {"id": "_disk1", "bdf": "0000:00:05.0"}


@pytest.mark.parametrize("info", ["{}", '{"state": ["Running"], "config": {}}', '{"state": "Running", "config": []}'])
def test_odd_information_is_refused(vmm: Vmm, client: VmmClient, info: str) -> None:
    vmm.status, vmm.body = 200, info
    with pytest.raises(MicrovmError, match="without a state and a configuration"):
        client.info()


def test_counters_are_numbers(vmm: Vmm, client: VmmClient) -> None:
    vmm.status, vmm.body = 200, '{"_disk0": {"read_bytes": 5, "odd": "6"}, "odd": 7}'
    assert client.counters() == {"_disk0": {"read_bytes": 5}}


def test_cause_chain_of_a_refusal(vmm: Vmm, client: VmmClient) -> None:
    vmm.status, vmm.body = 500, '["Error from API", "The VM could not boot", "No such file or directory (os error 2)"]'
    with pytest.raises(VmmError, match="vm.boot with HTTP status 500: Error from API: The VM could not boot: No") as e:
        client.act("boot")
    assert e.value.status == 500
    assert e.value.causes == ("Error from API", "The VM could not boot", "No such file or directory (os error 2)")


@pytest.mark.parametrize(
    ("body", "causes"),
    [
        ('["a", "b"]', ("a", "b")),
        ("[]", ()),
        ("", ()),
        ("VM is not created\n", ("VM is not created",)),
        ('{"error": "x"}', ('{"error": "x"}',)),
        ("[1, 2]", ("[1, 2]",)),
        ('["cut off', ('["cut off',)),
    ],
)
def test_causes(body: str, causes: tuple[str, ...]) -> None:
    assert cause_chain(body) == causes


def test_refusal_without_a_reason(vmm: Vmm, client: VmmClient) -> None:
    vmm.status = 400
    with pytest.raises(VmmError, match="HTTP status 400: no reason given"):
        client.info()


@pytest.mark.parametrize("body", ["<html>", "[1]", "3"])
def test_an_answer_that_is_no_json_object(vmm: Vmm, client: VmmClient, body: str) -> None:
    vmm.status, vmm.body = 200, body
    with pytest.raises(VmmError, match="expected a JSON object, got: "):
        client.info()


def test_no_socket(directory: Path) -> None:
    with pytest.raises(VmmUnreachable, match="no VMM answered vm.info at .*api.sock': No such file or directory"):
        VmmClient(str(directory / "api.sock")).info()


def test_a_dead_vmms_socket(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "api.sock"))
    with pytest.raises(VmmUnreachable, match="Connection refused"):
        VmmClient(str(directory / "api.sock")).info()


def test_a_vmm_that_hangs_up(directory: Path) -> None:
    with (
        raw_listener(directory / "api.sock", lambda connection: None),
        pytest.raises(VmmUnreachable, match="no VMM answered vm.info at "),
    ):
        VmmClient(str(directory / "api.sock")).info()


def test_a_vmm_that_does_not_answer(directory: Path) -> None:
    answered = threading.Event()
    with raw_listener(directory / "api.sock", lambda connection: (answered.wait(), None)[1]):
        with pytest.raises(VmmUnreachable, match=r"within 0.2 seconds"):
            VmmClient(str(directory / "api.sock"), timeout=0.2).info()
        answered.set()


def test_something_that_does_not_speak_http(directory: Path) -> None:
    with (
        raw_listener(directory / "api.sock", lambda connection: connection.sendall(b"SSH-2.0-x\r\n\r\n")),
        pytest.raises(VmmUnreachable, match="no VMM answered vm.info at "),
    ):
        VmmClient(str(directory / "api.sock")).info()


def test_a_path_too_long_for_a_socket() -> None:
    VmmClient("/" + "é" * 53)  # 107 bytes
    with pytest.raises(MicrovmError, match="has 108 bytes, but that of a unix socket has at most 107"):
        VmmClient("/" + "é" * 53 + "a")


def test_proxies_of_the_environment_are_left_alone(
    vmm: Vmm, client: VmmClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http+unix_proxy", "http://127.0.0.1:9")
    client.act("pause")
    assert len(vmm.requests) == 1
