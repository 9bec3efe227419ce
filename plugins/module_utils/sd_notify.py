# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Telling systemd what it cannot see of a unit: sd_notify(3), from a process of that unit."""

from __future__ import annotations

import os
import select
import socket

from .errors import MicrovmError

_SECONDS = 10


def listens() -> bool:
    """Return whether systemd listens to this process."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def tell(message: str) -> None:
    """Send one message, such as ``MAINPID=1``, and wait until systemd has read it (sd_notify_barrier(3)).

    Raises MicrovmError where it has not.
    """
    address = os.environ["NOTIFY_SOCKET"]
    read, write = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            notify.send(message.encode())
            # systemd closes what it is sent with a message once it has read all messages before.
            socket.send_fds(notify, [b"BARRIER=1"], [write])
        os.close(write)
        write = -1
        poll = select.poll()
        poll.register(read, select.POLLHUP)
        if not poll.poll(_SECONDS * 1000):
            raise MicrovmError(f"systemd has not read '{message}' within {_SECONDS} seconds")
    except OSError as error:
        raise MicrovmError(f"systemd cannot be told '{message}': {error.strerror}") from error
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)
