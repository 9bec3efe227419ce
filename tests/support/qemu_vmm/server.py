# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The REST API over HTTP: routes, status codes and error bodies (vmm/src/api/http/)."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from . import config as model
from .errors import BadJson, Refused
from .vmm import NOT_CREATED, Vmm

ROOT = "/api/v1/"
NO_VM = (NOT_CREATED, "VM config is missing")

Call = tuple[str, Callable[..., Any]]  # what the error is called, and what is done

GETS: dict[str, Call] = {
    "vmm.ping": ("", Vmm.ping),
    "vm.info": ("The VM info is not available", Vmm.info),
    "vm.counters": ("The VM info is not available", Vmm.counters),
}
ACTIONS: dict[str, Call] = {
    "vm.boot": ("The VM could not boot", Vmm.boot),
    "vm.delete": ("The VM could not be deleted", Vmm.delete),
    "vm.nmi": ("Error triggering NMI", Vmm.nmi),
    "vm.pause": ("The VM could not be paused", Vmm.pause),
    "vm.power-button": ("Error triggering power button", Vmm.power_button),
    "vm.reboot": ("The VM could not reboot", Vmm.reboot),
    "vm.resume": ("The VM could not resume", Vmm.resume),
    "vm.shutdown": ("The VM could not shutdown", Vmm.shutdown),
}


def _other(kind: str) -> Callable[[Vmm, Any], None]:
    return lambda vmm, _body: vmm.add_other(kind)


def _anything(value: Any) -> Any:
    if not isinstance(value, dict):
        raise BadJson("invalid type: expected a map")
    return value


CHANGES: dict[str, tuple[str, Callable[..., Any], model.Parse]] = {
    "vm.add-device": ("The device could not be added to the VM", _other("device"), _anything),
    "vm.add-disk": ("The disk could not be added to the VM", Vmm.add_disk, model.disk),
    "vm.add-fs": ("The fs could not be added to the VM", _other("fs"), _anything),
    "vm.add-generic-vhost-user": (
        "The generic vhost-user device could not be added to the VM",
        _other("generic-vhost-user"),
        _anything,
    ),
    "vm.add-net": ("The network device could not be added to the VM", Vmm.add_net, model.net),
    "vm.add-pmem": ("The pmem device could not be added to the VM", _other("pmem"), _anything),
    "vm.add-user-device": ("The user device could not be added to the VM", _other("user-device"), _anything),
    "vm.add-vdpa": ("The vDPA device could not be added to the VM", _other("vdpa"), _anything),
    "vm.add-vsock": ("The vsock device could not be added to the VM", Vmm.add_vsock, model.vsock),
    "vm.create": ("The VM could not be created", Vmm.create, model.vm),
    "vm.receive-migration": ("Error receiving migration", Vmm.receive_migration, model.receive_migration),
    "vm.remove-device": ("The device could not be removed from the VM", Vmm.remove_device, model.remove_device),
    "vm.resize": ("The VM could not be resized", Vmm.resize, model.resize),
    "vm.resize-disk": ("The disk could not be resized", Vmm.resize_disk, model.resize_disk),
    "vm.resize-zone": ("The memory zone could not be resized", Vmm.resize_zone, model.resize_zone),
    "vm.restore": ("The VM could not be restored", Vmm.restore, model.restore),
    "vm.send-migration": (
        "Error dispatching the migration worker",
        Vmm.send_migration,
        model.send_migration,
    ),
    "vm.snapshot": ("The VM could not be snapshotted", Vmm.snapshot, model.snapshot),
}

Answer = tuple[int, Any]  # the status and the JSON, None for an empty body
BAD_REQUEST: Answer = (400, ["Bad Request"])


def handle(vmm: Vmm, method: str, path: str, body: bytes) -> Answer:
    """Answer one request."""
    name = path.removeprefix(ROOT) if path.startswith(ROOT) else ""
    if name == "vmm.shutdown":
        if method != "PUT":
            return BAD_REQUEST
        vmm.submit(vmm.shutdown_vmm)
        return 200, None
    if name in GETS:
        return _run(vmm, *GETS[name]) if method == "GET" else BAD_REQUEST
    if name in ACTIONS:
        return _run(vmm, *ACTIONS[name]) if method == "PUT" and not body else BAD_REQUEST
    if name not in CHANGES:
        return 404, ["Not Found"]
    if method != "PUT":
        return BAD_REQUEST
    if not body:
        return (400, None) if name == "vm.create" else BAD_REQUEST
    context, change, parse = CHANGES[name]
    try:
        wanted = parse(json.loads(body))
    except (BadJson, ValueError, RecursionError) as error:
        return 400, ["Failed to deserialize JSON", str(error)]
    return _run(vmm, context, change, wanted)


def _run(vmm: Vmm, context: str, work: Callable[..., Any], *arguments: Any) -> Answer:
    try:
        # Dumped in the main thread too: nothing changes meanwhile.
        result = vmm.submit(lambda: json.dumps(work(vmm, *arguments)))
    except Refused as error:
        status = 404 if error.causes[0] in NO_VM else 500
        return status, ["Error from API", context, *error.causes]
    return (204, None) if result == "null" else (200, json.loads(result))


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP for ``handle``."""

    protocol_version = "HTTP/1.1"
    server: Server

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.busy:
            status, answer = handle(self.server.vmm, self.command, self.path.split("?")[0], body)
            content = b"" if answer is None else json.dumps(answer, separators=(",", ":")).encode()
            self._send(status, content)

    def _send(self, status: int, content: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Server", "Cloud Hypervisor API")
        self.send_header("Connection", "keep-alive")
        if status != 204:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
        with suppress(OSError):  # the client may have gone
            self.end_headers()
            if content:
                self.wfile.write(content)

    do_GET = do_PUT = do_PATCH = do_DELETE = _answer

    def do_POST(self) -> None:
        """Refuse a method that the real VMM's HTTP server does not know."""
        self._send(400, b'{ "error": "Invalid HTTP Method: Unsupported HTTP method." }')
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Server(socketserver.ThreadingUnixStreamServer):
    """Listens on a path, or on a socket that was handed over."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, vmm: Vmm, path: str | None, fd: int | None) -> None:
        self.vmm = vmm
        self.busy = Busy()
        self._path = path
        super().__init__(path or "", Handler, bind_and_activate=fd is None)
        if fd is not None:
            self.socket.close()
            self.socket = type(self.socket)(fileno=fd)

    def server_bind(self) -> None:
        """Bind; a socket that nobody listens on any more gives way."""
        path = Path(str(self._path))
        if path.is_socket():
            path.unlink()
        super().server_bind()

    def start(self) -> None:
        """Serve in threads."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 60}, daemon=True).start()

    def finish(self) -> None:
        """Wait a moment for the answers on their way, and leave no socket behind."""
        deadline = time.monotonic() + 2
        while self.busy.count and time.monotonic() < deadline:
            time.sleep(0.005)
        if self._path is not None:
            Path(self._path).unlink(missing_ok=True)


class Busy:
    """Counts the requests that are being answered."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.count += 1

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self.count -= 1
