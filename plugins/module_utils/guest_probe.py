# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Asking a guest over the network, through its TAP and no other interface."""

from __future__ import annotations

import http.client
import re
import socket

# A guest that is up answers at once; one that is not is asked again.
_SECONDS = 2.0
_MAX_BODY = 1 << 20


def _connection(address: str, port: int, tap: str | None) -> socket.socket:
    """Connect. With SO_BINDTODEVICE (socket(7)) the packets leave through the TAP, whatever the host's routes say."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(_SECONDS)
        if tap is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, tap.encode() + b"\0")
        connection.connect((address, port))
    except BaseException:
        connection.close()
        raise
    return connection


def tcp(address: str, port: int, tap: str | None) -> str | None:
    """Return None where a port takes connections, else why not."""
    try:
        _connection(address, port, tap).close()
    except OSError as error:
        return f"{address}: {error.strerror or error}"
    return None


def http_answer(address: str, port: int, path: str, status: int, body: str, tap: str | None) -> str | None:
    """Return None where GET ``path`` is answered with ``status`` and a body in which ``body``, a regex, is found, else why not."""
    client = http.client.HTTPConnection(address, port, timeout=_SECONDS)
    try:
        client.sock = _connection(address, port, tap)
        client.request("GET", path, headers={"Connection": "close"})
        answer = client.getresponse()
        content = answer.read(_MAX_BODY).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"{address}: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"
    finally:
        client.close()
    if answer.status != status:
        return f"{address} answered {answer.status}"
    if re.search(body, content) is None:
        return f"{address} answered {content[:200]!r}"
    return None
