# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Print how long leases take: 1,000 one by one, and 1,000 in one call, with the same database and host.

Usage: leases.py [COUNT]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import lease_store
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    items = [{"name": f"vm{number}"} for number in range(count)]
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name, calls in (("one by one", [[item] for item in items]), ("in one call", [items]), ("again", [items])):
            state_dir = Path(directory, "again" if name == "again" else name)
            if name == "again":
                lease_store.ensure(items, state_dir=state_dir, runner=HostRunner())
            start = time.perf_counter()
            for call in calls:
                lease_store.ensure(call, state_dir=state_dir, runner=HostRunner())
            rows.append((name, time.perf_counter() - start))
    print(f"{count} leases           seconds   per lease ms   ratio to one call")
    for name, seconds in rows:
        print(f"{name:<20} {seconds:>10.3f} {seconds / count * 1000:>14.3f} {seconds / rows[1][1]:>19.2f}")


if __name__ == "__main__":
    main()
