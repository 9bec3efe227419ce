# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that says itself when it is ready: systemd's READY=1 over vsock.

The guest finds the address in the credential ``vmm.notify_socket`` (systemd.system-credentials(7), since systemd 254 with
``vsock-stream``), which an SMBIOS string of type 11 brings (systemd.exec(5), smbios(5)). It connects to the host, CID 2; Cloud
Hypervisor passes that on to the unix socket of the VM's vsock with ``_`` and the port behind its name (docs/vsock.md). Each
message has a connection of its own and ends with it; its lines are those of sd_notify(3).
"""

from __future__ import annotations

import os
import selectors
import socket
from pathlib import Path
from types import TracebackType

from .vmm_api import check_socket_path

PORT = 9999
_HOST_CID = 2
# No message of sd_notify is longer than a page.
_MAX_MESSAGE = 4096


def credential() -> str:
    """Return the OEM string that tells the guest where to report."""
    return f"io.systemd.credential:vmm.notify_socket=vsock-stream:{_HOST_CID}:{PORT}"


def socket_path(vsock_socket: Path) -> Path:
    """Return where the host listens for what the guest of this vsock reports."""
    return vsock_socket.with_name(f"{vsock_socket.name}_{PORT}")


class Listener:
    """Listens for a guest's messages from ``open`` on; to be open before the guest boots."""

    def __init__(self, vsock_socket: Path) -> None:
        """Raise MicrovmError for a path that is too long."""
        self.path = socket_path(vsock_socket)
        check_socket_path(str(self.path), option="run_dir")
        self._selector: selectors.DefaultSelector | None = None
        self._messages: dict[socket.socket, bytes] = {}
        self._heard: set[str] = set()

    def open(self) -> None:
        """Listen. The socket belongs to the owner of its directory, as whom the VMM may run."""
        if self._selector is not None:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self.path.unlink(missing_ok=True)
            # The file gets the mode of its socket; its name can be another file's a moment later, by the directory's owner.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(self.path))
            owner = self.path.parent.stat()
            os.chown(self.path, owner.st_uid, owner.st_gid, follow_symlinks=False)
            listener.listen(16)
        except BaseException:
            listener.close()
            raise
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def ready(self) -> bool:
        """Take in what has come; return whether the guest has said READY=1 since the socket is open."""
        while self._selector is not None and (waiting := self._selector.select(0)):
            for key, _events in waiting:
                connection = key.fileobj
                if isinstance(connection, socket.socket):
                    self._take(self._selector, connection)
        return "READY=1" in self._heard

    def _take(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        if connection not in self._messages:
            accepted, _peer = connection.accept()
            accepted.setblocking(False)
            self._messages[accepted] = b""
            selector.register(accepted, selectors.EVENT_READ)
            return
        try:
            data = connection.recv(_MAX_MESSAGE)
        except OSError:
            data = b""
        self._messages[connection] += data
        if not data or len(self._messages[connection]) > _MAX_MESSAGE:
            selector.unregister(connection)
            connection.close()
            self._heard |= set(self._messages.pop(connection).decode(errors="replace").splitlines())

    def close(self) -> None:
        """Stop listening; the socket's file goes."""
        if self._selector is not None:
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()
            self._selector.close()
            self._selector = None
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
