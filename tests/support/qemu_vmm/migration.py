# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a VM's state goes to and comes from: snapshot directories, and another VMM over a socket (vmm/src/migration/).

The stream of memory and devices is QEMU's own. Around it, two VMMs send each other JSON, its length before it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

from .errors import Refused, not_emulated, os_error

Json = dict[str, Any]
CONFIG, STATE, MEMORY = "config.json", "state.json", "memory-ranges"
SENDING = "Failed to send migratable component snapshot"
RECEIVING = "Failed to receive migratable component snapshot"


# ---- Snapshots ----


def directory(url: str) -> Path:
    """Return the directory that a ``file://`` URL names."""
    if not url.startswith("file://"):
        raise Refused(SENDING, f"Could not extract path from URL: {url}")
    path = Path(url.removeprefix("file://"))
    if not path.is_dir():
        raise Refused(SENDING, f'Destination is not a directory: "{path}"')
    return path


def create(path: Path, what: str) -> int:
    """Open a new file of a snapshot; one that is there is never overwritten."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Refused(SENDING, f"Error creating {what} snapshot file", os_error(error)) from error


def write(path: Path, what: str, content: Json) -> None:
    """Write one of a snapshot's JSON files."""
    with open(create(path, what), "w") as file:
        json.dump(content, file)


def read(path: Path, what: str) -> Any:
    """Read one of a snapshot's JSON files."""
    try:
        text = path.read_text()
    except OSError as error:
        raise Refused(RECEIVING, f'Error opening {what} snapshot file "{path}"', os_error(error)) from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise Refused(RECEIVING, f"Error deserialising {what} snapshot", str(error)) from error


# ---- Sockets ----


def check_receive(wanted: Json) -> None:
    """Refuse what no migration can be received with."""
    url = wanted["receiver_url"]
    _check_url(url, "receive", ("Invalid receive migration configuration", "receiver_url"), RECEIVING)
    _check_tls(wanted, url, "receive", RECEIVING)


def check_send(wanted: Json) -> None:
    """Refuse what no migration can be sent with."""
    url = wanted["destination_url"]
    _check_url(url, "send", ("Invalid send migration configuration", "destination_url"), SENDING)
    problem = None
    if url.startswith("unix:") and wanted["connections"] > 1:
        problem = "UNIX sockets and connections option cannot be used at the same time."
    elif wanted["connections"] > 128:
        problem = "connections must not exceed 128."
    elif wanted["local"] and not url.startswith("unix:"):
        problem = "local option is only supported with UNIX sockets."
    if problem is not None:
        raise _invalid("send", problem, SENDING)
    _check_tls(wanted, url, "send", SENDING)
    if wanted["connections"] > 1:
        raise not_emulated("a migration over more than one connection")


def _invalid(what: str, problem: str, context: str) -> Refused:
    return Refused(
        context, f"Invalid {what} migration configuration", f"Error validating {what} migration parameters: {problem}"
    )


def _check_url(url: str, what: str, names: tuple[str, str], context: str) -> None:
    form = f"{names[1]} must use tcp:<host>:<port> or unix:<path>"
    if url.startswith("tcp:"):
        if not url.rpartition(":")[2].isdigit() or url.count(":") < 2:
            raise _invalid(what, f"{form}: Missing TCP port.", context)
    elif not url.startswith("unix:") or url == "unix:":
        raise _invalid(what, f"{form}.", context)


def _check_tls(wanted: Json, url: str, what: str, context: str) -> None:
    if "tls_dir" in wanted:
        if url.startswith("unix:"):
            raise _invalid(what, "UNIX sockets and TLS encryption cannot be used at the same time.", context)
        raise not_emulated("a migration over TLS")
    if wanted.get("memory_mode", "Precopy") != "Precopy":
        raise not_emulated("a postcopy migration")


def _address(url: str) -> tuple[str, int]:
    host, _colon, port = url.removeprefix("tcp:").rpartition(":")
    return host.strip("[]"), int(port)


def listen(url: str) -> socket.socket:
    """Listen at a URL that was checked."""
    try:
        if url.startswith("tcp:"):
            return socket.create_server(_address(url))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(url.removeprefix("unix:"))
        listener.listen()
        return listener
    except OSError as error:
        kind = "TCP" if url.startswith("tcp:") else "UNIX"
        raise Refused(RECEIVING, f"Error binding to {kind} socket", os_error(error)) from error


def connect(url: str) -> socket.socket:
    """Connect to a URL that was checked."""
    try:
        if url.startswith("tcp:"):
            return socket.create_connection(_address(url))
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(url.removeprefix("unix:"))
        return connection
    except OSError as error:
        kind = "TCP" if url.startswith("tcp:") else "UNIX"
        raise Refused(SENDING, f"Error connecting to {kind} socket", os_error(error)) from error


def send(connection: socket.socket, message: Json) -> None:
    """Send one message."""
    content = json.dumps(message).encode()
    try:
        connection.sendall(struct.pack(">Q", len(content)) + content)
    except OSError as error:
        raise Refused("Socket error", os_error(error)) from error


def receive(connection: socket.socket) -> Json:
    """Receive one message."""
    (length,) = struct.unpack(">Q", _exactly(connection, 8))
    return dict(json.loads(_exactly(connection, length)))


def _exactly(connection: socket.socket, length: int) -> bytes:
    content = b""
    while len(content) < length:
        try:
            more = connection.recv(length - len(content))
        except OSError as error:
            raise Refused("Socket error", os_error(error)) from error
        if not more:
            raise Refused("Socket error", "failed to fill whole buffer")
        content += more
    return content


def ask(connection: socket.socket, message: Json) -> None:
    """Send one message and wait until the other VMM has done what it says."""
    send(connection, message)
    if not receive(connection).get("ok"):
        raise Refused(SENDING, f"The receiving VMM failed at {message['command']}")
