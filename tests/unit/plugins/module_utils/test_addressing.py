# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import addressing
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.addressing import Pool, free_subnets, parse_pool
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError


def test_default_pool() -> None:
    assert parse_pool({}, version=4, option="pool") == Pool(ip_network("10.213.0.0/16"), 30)
    assert parse_pool({"cidr": "fd00::/64"}, version=6, option="pool6") == Pool(ip_network("fd00::/64"), 126)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cidr": "10.0.0.1/8"}, "option 'pool.cidr': '10.0.0.1/8' is not a network: .*host bits"),
        ({"cidr": "nonsense"}, "option 'pool.cidr': 'nonsense' is not a network"),
        ({"cidr": "fd00::/64"}, "option 'pool.cidr': .* is not an IPv4 network"),
        ({"cidr": "10.0.0.0/24", "prefix": 23}, "option 'pool.prefix': 23 .* use 24 to 31"),
        ({"prefix": 32}, "option 'pool.prefix': 32"),
        ({"exclude": ["10.0.0.1/8"]}, "option 'pool.exclude'"),
    ],
)
def test_bad_pools_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(MicrovmError, match=message):
        parse_pool(options, version=4, option="pool")


@pytest.mark.parametrize(
    ("subnet", "host", "guest"),
    [
        ("10.0.0.0/30", "10.0.0.1", "10.0.0.2"),
        ("10.0.0.0/31", "10.0.0.0", "10.0.0.1"),
        ("10.0.0.0/24", "10.0.0.1", "10.0.0.2"),
        ("fd00::/126", "fd00::1", "fd00::2"),
        ("fd00::/127", "fd00::", "fd00::1"),
    ],
)
def test_the_two_sides(subnet: str, host: str, guest: str) -> None:
    assert addressing.host_address(ip_network(subnet)) == ip_address(host)
    assert addressing.guest_address(ip_network(subnet)) == ip_address(guest)


def test_a_guest_can_have_what_is_usable_and_not_the_hosts() -> None:
    subnet = ip_network("10.0.0.0/29")
    usable = [wanted for wanted in subnet if addressing.guest_address(subnet, wanted)]
    assert [str(address) for address in usable] == [f"10.0.0.{last}" for last in range(2, 7)]
    assert addressing.guest_address(subnet, IPv4Address("10.0.0.9")) is None


def test_free_subnets_passes_over_what_is_blocked_or_excluded() -> None:
    pool = Pool(ip_network("10.0.0.0/27"), 30, (ip_network("10.0.0.16/30"),))
    blocked = [ip_network("10.0.0.0/32"), ip_network("10.0.0.8/29"), ip_network("0.0.0.0/8"), ip_network("fd00::/8")]
    assert [str(subnet) for subnet in free_subnets(pool, blocked)] == [
        "10.0.0.4/30",
        "10.0.0.20/30",
        "10.0.0.24/30",
        "10.0.0.28/30",
    ]


def test_a_pool_inside_a_network_in_use_is_all_blocked() -> None:
    assert list(free_subnets(Pool(ip_network("10.1.0.0/24"), 30), [ip_network("10.0.0.0/8")])) == []


def test_a_large_pool_is_not_walked() -> None:
    pool = Pool(ip_network("fd00::/16"), 126)
    assert next(free_subnets(pool, [ip_network("fd00::/17")])) == ip_network("fd00:8000::/126")


networks = st.builds(
    lambda value, prefix: ip_network((value >> (32 - prefix) << (32 - prefix), prefix)),
    st.integers(0x0A000000, 0x0A0001FF),
    st.integers(20, 32),
)


@given(st.lists(networks, max_size=8), st.integers(25, 31))
def test_free_subnets_are_all_that_overlap_nothing(blocked: list[addressing.Network], prefix: int) -> None:
    pool = Pool(ip_network("10.0.0.0/24"), prefix)
    expected = [
        subnet
        for subnet in ip_network("10.0.0.0/24").subnets(new_prefix=prefix)
        if not any(subnet.overlaps(network) for network in blocked)
    ]
    assert list(free_subnets(pool, blocked)) == expected


@given(st.sets(st.integers(0, 2**32 - 1), min_size=2, max_size=50))
def test_derived_macs_are_unique_local_and_unicast(values: set[int]) -> None:
    macs = {addressing.derived_mac(IPv4Address(value)) for value in values}
    assert len(macs) == len(values)
    assert all(addressing.parse_mac(mac) == mac and int(mac[:2], 16) & 2 for mac in macs)


@pytest.mark.parametrize("mac", ["", "01:00:5e:00:00:01", "02:63:0a:d5:00", "02-63-0a-d5-00-02", "02:63:0a:d5:00:0g"])
def test_macs_that_no_guest_can_have(mac: str) -> None:
    with pytest.raises(MicrovmError, match="is not a unicast MAC"):
        addressing.parse_mac(mac)


def test_tap_names() -> None:
    assert list(islice(addressing.free_taps("chtap", {"chtap1"}), 3)) == ["chtap0", "chtap2", "chtap3"]


@pytest.mark.parametrize("prefix", ["", "9tap", "tap/", "x" * 11])
def test_tap_prefixes_that_make_no_name(prefix: str) -> None:
    with pytest.raises(MicrovmError, match="option 'tap_prefix'"):
        addressing.free_taps(prefix, ())


def test_context_ids_begin_after_the_reserved_ones() -> None:
    assert list(islice(addressing.free_cids({4}), 3)) == [3, 5, 6]
