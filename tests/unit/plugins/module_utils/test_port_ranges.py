# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.port_ranges import merged, parse_ports, without

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1])))


def ports(ranges: list[tuple[int, int]]) -> set[int]:
    return {port for first, last in ranges for port in range(first, last + 1)}


@given(RANGES, RANGES)
def test_ranges_are_sets_of_ports(some: list[tuple[int, int]], taken: list[tuple[int, int]]) -> None:
    assert ports(merged(some)) == ports(some)
    assert ports(without(some, taken)) == ports(some) - ports(taken)
    for found in (merged(some), without(some, taken)):
        # In order, and with a gap between any two.
        assert all(one[1] + 1 < other[0] for one, other in pairwise(found))


@pytest.mark.parametrize(("text", "found"), [("80", (80, 80)), (443, (443, 443)), ("8000-8010", (8000, 8010))])
def test_ports_are_read(text: object, found: tuple[int, int]) -> None:
    assert parse_ports(text, option="port") == found


@pytest.mark.parametrize("text", ["0", "65536", "10-9", "a", "", "1-", "-1", "1-2-3", None])
def test_what_is_no_port_is_named(text: object) -> None:
    with pytest.raises(MicrovmError, match="is neither a port, 1 to 65535, nor a range such as 8000-8010") as caught:
        parse_ports(text, option="forwards.port")
    assert caught.value.option == "forwards.port"
