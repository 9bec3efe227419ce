# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Connecting to a port of a guest through the unix socket of its vsock.

Cloud Hypervisor's docs/vsock.md: the host writes ``CONNECT port`` and a line break; where the guest listens there, the answer is
``OK`` and the host's port, and the connection is the guest's from then on. Where not, the connection ends without an answer.
"""

from __future__ import annotations

import socket
from pathlib import Path

from .errors import MicrovmError
from .relay import drain, relay

_MAX_ANSWER = 32


def connect(vsock_socket: Path, port: int, *, timeout: float = 10.0) -> socket.socket:
    """Return a connection to the guest's port. Raises MicrovmError where nothing listens there."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    try:
        connection.connect(str(vsock_socket))
        connection.sendall(f"CONNECT {port}\n".encode())
        answer = b""
        # Byte by byte: what follows the line is the guest's.
        while not answer.endswith(b"\n") and len(answer) < _MAX_ANSWER:
            byte = connection.recv(1)
            if not byte:
                raise MicrovmError(f"nothing in the guest listens on vsock port {port}")
            answer += byte
        if not answer.startswith(b"OK "):
            raise MicrovmError(f"'{vsock_socket}' is no vsock of a VM; it answered {answer!r}")
        connection.settimeout(None)
    except OSError as error:
        connection.close()
        raise MicrovmError(
            f"no connection to vsock port {port} through '{vsock_socket}': {error.strerror or error}"
        ) from error
    except MicrovmError:
        connection.close()
        raise
    return connection


def proxy(vsock_socket: Path, port: int, source: int, sink: int) -> None:
    """Connect ``source`` and ``sink`` to the guest's port, as ssh's ProxyCommand does. Raises as ``connect`` does."""
    with connect(vsock_socket, port) as connection:
        if relay(connection.fileno(), source, sink) == "source":
            connection.shutdown(socket.SHUT_WR)
            drain(connection.fileno(), sink)
