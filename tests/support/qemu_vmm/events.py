# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The event monitor: pretty-printed JSON objects, a blank line after each (event_monitor/src/lib.rs)."""

from __future__ import annotations

import json
import os
import time


class Events:
    """Writes events to a file descriptor, or nowhere."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._start = time.monotonic_ns()

    def emit(self, source: str, event: str) -> None:
        """Write one event, with the time since the VMM started."""
        if self._fd is None:
            return
        secs, nanos = divmod(time.monotonic_ns() - self._start, 1_000_000_000)
        record = {"timestamp": {"secs": secs, "nanos": nanos}, "source": source, "event": event, "properties": None}
        os.write(self._fd, json.dumps(record, indent=2).encode() + b"\n\n")
