# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host that the tests of a file share, without any rule at the beginning of each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import world
from lab import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = world.build(f"fw-{os.getpid()}")
    yield made
    made.close()
