# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest writes to its serial port, read wherever that leads."""

from __future__ import annotations

import os
import socket
import termios
import tty
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from .errors import MicrovmError
from .tail import Tail


class Output(Protocol):
    """What the guest has written."""

    def new(self) -> bytes:
        """Return what has come since the last call."""

    def close(self) -> None:
        """Let go of it."""


class Attached:
    """A serial port on a pty or a socket. What was written before somebody attached is kept by the VMM, up to its buffer."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor

    def new(self) -> bytes:
        """See Output.new."""
        data = b""
        with suppress(OSError):  # nothing more now, or a pty that has hung up
            while more := os.read(self.descriptor, 65536):
                data += more
        return data

    def close(self) -> None:
        """See Output.close."""
        os.close(self.descriptor)


def attach(config: Mapping[str, Any]) -> int:
    """Open a pty or a socket that leads to a guest, from a console of vm.info's configuration; return the descriptor.

    Raises MicrovmError where it leads elsewhere, OSError where the VMM is just gone.
    """
    match config.get("mode"):
        case "Pty":
            descriptor = os.open(str(config["file"]), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            # Not flushed: what the guest has written until now is there to be read.
            tty.setraw(descriptor, termios.TCSANOW)
            return descriptor
        case "Socket":
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(config["socket"]))
            except BaseException:
                connection.close()
                raise
            return connection.detach()
        case mode:
            raise MicrovmError(
                f"it is '{str(mode).lower()}', to which nobody can attach; use the mode pty, or socket for the serial port",
                option="serial.mode",
            )


def output(config: Mapping[str, Any]) -> Output:
    """Return the output of a console of vm.info's configuration. Raises as ``attach`` does."""
    if config.get("mode") == "File":
        # It begins with the boot: the VMM truncates it then (tests/vmm_contract).
        return Tail(Path(str(config["file"])))
    return Attached(attach(config))
