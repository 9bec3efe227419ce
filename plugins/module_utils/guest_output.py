# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest writes to its serial port, read wherever that leads."""

from __future__ import annotations

import os
import re
import socket
import termios
import tty
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from .errors import MicrovmError
from .tail import Tail
from .vm_paths import Paths

# devpts, see pts(4)
_PTY = re.compile(r"/dev/pts/[0-9]+")


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


def attach(config: Mapping[str, Any], paths: Paths) -> int:
    """Open a pty or a socket that leads to a guest, from a console of vm.info's configuration; return the descriptor.

    That is the VMM's word, by which no other file or terminal is opened than one of its user's. Raises MicrovmError where it
    leads elsewhere, OSError where the VMM is just gone.
    """
    match config.get("mode"):
        case "Pty":
            name = str(config.get("file"))
            if not _PTY.fullmatch(name) or os.stat(name).st_uid != paths.run.stat().st_uid:
                raise MicrovmError(f"the VMM says that it is {name!r}, which is no pty of its user's")
            descriptor = os.open(name, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            # Not flushed: what the guest has written until now is there to be read.
            tty.setraw(descriptor, termios.TCSANOW)
            return descriptor
        case "Socket":
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(paths.serial_socket))
            except BaseException:
                connection.close()
                raise
            return connection.detach()
        case mode:
            raise MicrovmError(
                f"it is '{str(mode).lower()}', to which nobody can attach; use the mode pty, or socket for the serial port",
                option="serial.mode",
            )


def output(config: Mapping[str, Any], paths: Paths) -> Output:
    """Return the output of a console of vm.info's configuration. Raises as ``attach`` does."""
    if config.get("mode") == "File":
        # It begins with the boot: the VMM truncates it then (tests/vmm_contract).
        return Tail(own_file(config, paths))
    return Attached(attach(config, paths))


def own_file(config: Mapping[str, Any], paths: Paths) -> Path:
    """Return the file that the VMM says it writes a console to. Raises MicrovmError where it is another user's."""
    path = Path(str(config.get("file")))
    if path.exists() and path.lstat().st_uid != paths.run.stat().st_uid:
        raise MicrovmError(f"the VMM says that it is '{path}', which is not its user's")
    return path
