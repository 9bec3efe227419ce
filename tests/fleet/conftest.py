# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pvh_guest
import pytest
from playbook_runs import Hosts


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    """A directory with what the tiny guest boots from."""
    pvh_guest.write(tmp_path / "pvh.elf")
    (tmp_path / "root.raw").write_bytes(bytes(1 << 20))
    return Hosts(tmp_path)


@pytest.fixture
def vms() -> Callable[[int], list[dict[str, Any]]]:
    """What gives entries of VMs."""
    return lambda count: [{"name": f"vm{number}"} for number in range(count)]
