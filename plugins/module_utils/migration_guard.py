# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A process that has a guest go on where the run that has paused it is killed: a dead run cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import MicrovmError
from .vmm_api import VmmClient

# A VMM refuses to resume a guest while it is sending it, which ends soon where whoever carries that is dead.
_PATIENCE_SECONDS = 120.0
_POLL_SECONDS = 0.2


@contextmanager
def resumed_if_killed(api_socket: Path) -> Iterator[None]:
    """Have the guest of a VMM resumed where this process ends before the block does."""
    argv = [sys.executable, "-c", f"from {__name__} import watch; watch()", str(api_socket)]
    # What Ansible has sent is found where this process has found it, and read before the guest is paused.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    ) as guard:
        try:
            if guard.stdout is None or guard.stdout.read(1) != b"r":
                raise MicrovmError("the process that would resume the guest after a killed run does not start")
            yield
        finally:
            with suppress(BrokenPipeError):
                guard.communicate(b"d")


def watch() -> None:
    """Wait for a word on standard input; where it ends without one, resume the guest of the VMM that is named."""
    os.write(1, b"r")
    if os.read(0, 1):
        return
    client = VmmClient(sys.argv[1], timeout=5.0)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with suppress(MicrovmError):
            if client.info()["state"] != "Paused":
                return
            client.act("resume")
        time.sleep(_POLL_SECONDS)
