# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU's machine protocol over one connected socket, with file descriptors where a command takes them."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any


class QmpError(Exception):
    """QEMU refused a command, or is gone."""


_ANSWER_SECONDS = 10


class Qmp:
    """Sends commands one at a time; hands each event to ``on_event`` in a thread of its own."""

    def __init__(self, connection: socket.socket, on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self._connection = connection
        self._on_event = on_event
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._one_at_a_time = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with self._connection.makefile("r", encoding="utf-8") as lines:
            try:
                for line in lines:
                    message = json.loads(line)
                    if "event" in message:
                        self._on_event(message["event"], message.get("data", {}))
                    elif "QMP" not in message:
                        self._answers.put(message)
            except (OSError, ValueError):
                pass
        self._answers.put(None)

    def command(self, name: str, **arguments: Any) -> Any:
        """Run a command and return what it returns."""
        return self.command_with_fds(name, [], **arguments)

    def command_with_fds(self, name: str, fds: list[int], **arguments: Any) -> Any:
        """Run a command that takes file descriptors."""
        request = json.dumps({"execute": name, "arguments": arguments}).encode()
        # One at a time, since answers do not say what they answer.
        with self._one_at_a_time:
            try:
                socket.send_fds(self._connection, [request], fds) if fds else self._connection.sendall(request)
                answer = self._answers.get(timeout=_ANSWER_SECONDS)
            except OSError as error:
                raise QmpError("QEMU has ended") from error
            except queue.Empty as error:
                # An answer that came later would be taken for the next command's.
                self._connection.shutdown(socket.SHUT_RDWR)
                raise QmpError(f"QEMU does not answer {name} within {_ANSWER_SECONDS} seconds") from error
        if answer is None:
            self._answers.put(None)
            raise QmpError("QEMU has ended")
        if "error" in answer:
            raise QmpError(answer["error"]["desc"])
        return answer["return"]

    def close(self) -> None:
        """End the connection."""
        self._connection.close()
