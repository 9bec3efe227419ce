# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""In the guest: vsock port 22 leads to its ssh server; READY=1 goes where the credential vmm.notify_socket says, as systemd does it."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copy one direction."""
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


def main() -> None:
    """Serve for ever."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, 22))
    listener.listen()
    found = re.search(
        rb"vmm\.notify_socket=vsock-stream:(\d+):(\d+)", Path("/sys/firmware/dmi/tables/DMI").read_bytes()
    )
    if found:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as notify:
            notify.connect((int(found[1]), int(found[2])))
            notify.sendall(b"READY=1\nSTATUS=Startup finished\n")
    while True:
        guest, _peer = listener.accept()
        server = socket.create_connection(("127.0.0.1", 22))
        for source, target in ((guest, server), (server, guest)):
            threading.Thread(target=copy, args=(source, target), daemon=True).start()


main()
