# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the serial port and the console lead: a pty, a file, a socket, the terminal, or nowhere."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import tty
from typing import Any

from .errors import Refused, os_error

BUFFER = 1 << 20


class Console:
    """One end of the guest's serial port or console. Each boot has its own: a pty's name may change with it."""

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        """Open what ``config`` asks for; in pty mode fill in its ``file``."""
        self.name = name
        self.mode = config["mode"]
        self._config = config
        self._fds: list[int] = []
        self._relay: Relay | SocketRelay | None = None
        self._listener: socket.socket | None = None
        try:
            if self.mode == "Pty":
                main, sub = os.openpty()
                tty.setraw(sub)
                os.set_blocking(main, False)
                # The other end stays open, so that the pty lives while nobody is attached to it.
                self._fds = [main, sub]
                config["file"] = os.ttyname(sub)
            elif self.mode == "File" and "file" in config:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                self._fds = [os.open(config["file"], flags, 0o666)]
            elif self.mode == "Socket" and "socket" in config:
                self._listener = socket.socket(socket.AF_UNIX)
                self._listener.bind(config["socket"])
                self._listener.listen(1)
        except OSError as error:
            raise Refused("Error creating console devices", "Error creating console device", os_error(error)) from error

    def chardev(self) -> tuple[str, list[int]]:
        """Return QEMU's character device for a boot, and the descriptors that QEMU inherits."""
        if self.mode == "Pty":
            ours, its = socket.socketpair()
            self._relay = Relay(self._fds[0], ours)
            fd = its.detach()
            return f"socket,id={self.name},fd={fd}", [fd]
        if self.mode == "File":
            fd = os.dup(self._fds[0])
            os.set_inheritable(fd, True)
            return f"file,id={self.name},path=/dev/fd/{fd},append=on", [fd]
        if self._listener is not None:
            ours, its = socket.socketpair()
            self._relay = SocketRelay(self._listener, ours)
            fd = its.detach()
            return f"socket,id={self.name},fd={fd}", [fd]
        if self.mode == "Tty":
            return f"stdio,id={self.name},signal=off", []
        return f"null,id={self.name}", []

    def close(self) -> None:
        """Pass on the guest's last words, then close; the pty and the socket go."""
        if self._relay is not None:
            self._relay.stop()
            self._relay = None
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        if self._listener is not None:
            self._listener.close()
            with contextlib.suppress(OSError):
                os.unlink(self._config["socket"])


class Relay:
    """Copies between a pty and QEMU. What nobody reads from the pty is kept, at most BUFFER bytes of it, the newest."""

    def __init__(self, pty: int, guest: socket.socket) -> None:
        self._pty = pty
        self._guest = guest
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for QEMU's end of the connection, which has ended with QEMU."""
        self._thread.join(timeout=5)
        self._guest.close()

    def _run(self) -> None:
        pending = bytearray()
        poll = select.poll()
        poll.register(self._guest, select.POLLIN)
        while True:
            poll.register(self._pty, select.POLLIN | (select.POLLOUT if pending else 0))
            for fd, _event in poll.poll():
                try:
                    if fd == self._guest.fileno():
                        data = self._guest.recv(65536)
                        if not data:
                            with contextlib.suppress(OSError):
                                os.write(self._pty, pending)
                            return
                        pending += data
                        del pending[:-BUFFER]
                    if pending:
                        del pending[: os.write(self._pty, pending)]
                except BlockingIOError:
                    pass
                except OSError:
                    return
                if fd == self._pty:
                    with contextlib.suppress(OSError):
                        self._guest.sendall(os.read(self._pty, 4096))


class SocketRelay:
    """Copies between the newest connection to a socket and QEMU; what comes while there is none is kept for the next.

    As the real one does (vmm/src/serial_manager.rs): a new connection ends the one before it.
    """

    def __init__(self, listener: socket.socket, guest: socket.socket) -> None:
        self._listener = listener
        self._guest = guest
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for QEMU's end of the connection, which has ended with QEMU."""
        self._thread.join(timeout=5)
        self._guest.close()

    def _run(self) -> None:
        pending = bytearray()
        client: socket.socket | None = None
        while True:
            writing = [client] if client is not None and pending else []
            reading = [self._listener, self._guest, *([client] if client is not None else [])]
            readable, writable, _none = select.select(reading, writing, [])
            if self._guest in readable:
                data = self._guest.recv(65536)
                pending += data
                del pending[:-BUFFER]
                if not data:
                    if client is not None:
                        with contextlib.suppress(OSError):
                            client.send(pending)
                        client.close()
                    return
            if client is not None and client in readable:
                data = _received(client)
                if data:
                    self._guest.sendall(data)
                else:
                    client.close()
                    client = None
            if client is not None and client in writable:
                with contextlib.suppress(OSError):
                    del pending[: client.send(pending)]
            if self._listener in readable:
                if client is not None:
                    client.close()
                client, _peer = self._listener.accept()
                client.setblocking(False)


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(4096)
    except OSError:
        return b""
