# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU's own migration: the stream of a guest's memory and devices, written to or read from a descriptor."""

from __future__ import annotations

import os
import time
from typing import Any

from .errors import Refused
from .qmp import Qmp, QmpError

Json = dict[str, Any]
_POLL_SECONDS = 0.02
# QEMU's default of 128 MiB/s is meant for a network that others use too.
_BANDWIDTH = 1 << 40


def send(qmp: Qmp, fd: int, *, downtime_ms: int = 300, timeout_s: float = 3600, at_timeout: str = "Cancel") -> None:
    """Write the guest's stream; its vCPUs have stopped when this returns. They run on as before where it raises.

    Raises Refused where the stream breaks, or does not come to an end in time.
    """
    qmp.command_with_fds("getfd", [fd], fdname="migration")
    qmp.command("migrate-set-parameters", **{"max-bandwidth": _BANDWIDTH, "downtime-limit": min(downtime_ms, 2000000)})
    qmp.command("migrate", uri="fd:migration")
    deadline: float | None = time.monotonic() + timeout_s
    while True:
        status = qmp.command("query-migrate")
        match status.get("status"):
            case "completed":
                os.set_blocking(fd, True)  # QEMU's descriptor is a duplicate of this one
                return
            case "failed" | "cancelled":
                raise Refused("Error sending memory", status.get("error-desc", "the connection broke"))
        if deadline is not None and time.monotonic() > deadline:
            if at_timeout == "Cancel":
                qmp.command("migrate_cancel")
                raise Refused(f"Precopy: Timeout reached: {timeout_s:g}s: migration didn't converge in time")
            qmp.command("migrate-set-parameters", **{"downtime-limit": 2000000})
            deadline = None
        time.sleep(_POLL_SECONDS)


def receive(qmp: Qmp, fd: int) -> None:
    """Read a guest's stream; its vCPUs are stopped when this returns. Raises Refused for a stream that is none or ends early."""
    try:
        qmp.command_with_fds("getfd", [fd], fdname="migration")
        qmp.command("migrate-incoming", uri="fd:migration")
        while qmp.command("query-migrate").get("status") != "completed":
            time.sleep(_POLL_SECONDS)
        os.set_blocking(fd, True)
    except QmpError as error:
        raise Refused("Error restoring the VM's state", str(error)) from error
