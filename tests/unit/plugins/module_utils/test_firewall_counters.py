# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.firewall_counters import counted, of_tap


def listed(family: str, name: str, *elements: tuple[Any, int]) -> dict[str, Any]:
    elem = [{"elem": {"val": key, "counter": {"packets": count, "bytes": 10 * count}}} for key, count in elements]
    return {"set": {"family": family, "name": name, "table": "cloud_hypervisor", "elem": elem}}


def test_what_is_counted_in_several_sets_is_one_sum() -> None:
    counts = counted(
        [
            listed("inet", "sources4", ({"concat": ["chtap1", "02:00:00:00:00:01", "10.0.0.2"]}, 1)),
            listed("inet", "sources6", ({"concat": ["chtap1", "02:00:00:00:00:01", "fd00::2"]}, 2)),
            listed("inet", "targets4", ({"concat": ["chtap10", "10.0.0.6"]}, 4)),
            listed("inet", "dropped_forged", ("chtap1", 8), ("chtap10", 16)),
            listed("arp", "dropped_forged", ("chtap1", 32)),
            {"set": {"family": "inet", "name": "taps", "table": "cloud_hypervisor", "elem": ["chtap1"]}},
            {"set": {"family": "inet", "name": "empty", "table": "cloud_hypervisor"}},
            {"map": {"family": "inet", "name": "groups1", "table": "cloud_hypervisor", "elem": [["chtap1", 7]]}},
        ]
    )
    one = of_tap("chtap1", counts)
    assert one["sent"] == {"packets": 3, "bytes": 30}
    assert one["received"] == one["dropped"]["egress"] == {"packets": 0, "bytes": 0}
    assert one["dropped"]["forged"] == {"packets": 40, "bytes": 400}
    assert of_tap("chtap10", counts)["received"] == {"packets": 4, "bytes": 40}
