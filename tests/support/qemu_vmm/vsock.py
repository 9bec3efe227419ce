# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest's vsock, by vhost-device-vsock of the rust-vmm project, which QEMU talks to over vhost-user.

It has the host's side that Cloud Hypervisor has: ``CONNECT port`` on the socket, and ``SOCKET_PORT`` for what the guest connects to.
It needs nothing of the host's kernel.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from .boot_files import is_tiny
from .errors import Refused
from .guest import PR_SET_PDEATHSIG

PROGRAM = os.environ.get("QEMU_VMM_VSOCK")
_SECONDS = 10
_libc = ctypes.CDLL(None, use_errno=True)


def control(config: dict[str, Any]) -> str:
    """Return the path of the socket at which QEMU finds the device."""
    return f"{config['socket']}.vhost"


def emulated(config: dict[str, Any]) -> bool:
    """Whether a VM's vsock is more than a socket: there is the program, and a guest that can use it."""
    return PROGRAM is not None and "vsock" in config and not is_tiny(config["payload"])


class Device:
    """The program for one boot."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Start it; to be called in the main thread."""
        self._control = Path(control(config))
        self._control.unlink(missing_ok=True)
        argv = [str(PROGRAM), "--guest-cid", str(config["cid"])]
        argv += ["--socket", str(self._control), "--uds-path", config["socket"]]
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        deadline = time.monotonic() + _SECONDS
        while not self._control.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise Refused("qemu_vmm stand-in: vhost-device-vsock did not start")
            time.sleep(0.01)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._control.unlink(missing_ok=True)
