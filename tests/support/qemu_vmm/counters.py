# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm.counters: what QEMU and the kernel count, by the real VMM's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Json = dict[str, Any]


def of_disk(stats: Json) -> Json:
    """Return a disk's counters from QEMU's of its node."""
    counters: Json = {}
    for kind, short in (("read", "rd"), ("write", "wr")):
        operations = stats[f"{short}_operations"]
        # What no operation has set yet is u64::MAX, and its average in microseconds.
        latency = stats[f"{short}_total_time_ns"] // operations // 1000 if operations else None
        counters |= {f"{kind}_bytes": stats[f"{short}_bytes"], f"{kind}_ops": operations}
        for what in ("min", "max"):
            counters[f"{kind}_latency_{what}"] = 2**64 - 1 if latency is None else latency
        counters[f"{kind}_latency_avg"] = (2**64 - 1) // 10000 if latency is None else latency
    return counters


def of_net(tap: str) -> Json:
    """Return a NIC's counters from the kernel's of its TAP."""

    def read(name: str) -> int:
        path = Path("/sys/class/net", tap, "statistics", name)
        return int(path.read_text()) if path.exists() else 0

    # What the guest sends, the host receives.
    return {
        "tx_bytes": read("rx_bytes"),
        "tx_frames": read("rx_packets"),
        "rx_bytes": read("tx_bytes"),
        "rx_frames": read("tx_packets"),
    }
