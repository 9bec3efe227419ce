# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ipaddress import ip_network
from itertools import combinations
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.host_network import HostNetwork
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.lease_plan import (
    Lease,
    Plan,
    parse_request,
    plan,
)

NOTHING = HostNetwork()


def planned(*items: dict[str, Any], leases: dict[str, Lease] | None = None, host: HostNetwork = NOTHING) -> Plan:
    return plan(leases or {}, [parse_request(item) for item in items], host)


def leased(*items: dict[str, Any]) -> dict[str, Lease]:
    return {lease.name: lease for lease in planned(*items).added}


def error(result: Plan, name: str) -> str:
    outcome = result.outcomes[name]
    assert isinstance(outcome, MicrovmError)
    return str(outcome)


def test_a_first_lease() -> None:
    assert leased({"name": "web", "pool6": {"cidr": "fd00::/64"}})["web"] == Lease(
        name="web",
        address="10.213.0.2",
        host_address="10.213.0.1",
        prefix=30,
        subnet="10.213.0.0/30",
        mac="02:63:0a:d5:00:02",
        tap="chtap0",
        cid=3,
        address6="fd00::2",
        host_address6="fd00::1",
        prefix6=126,
        subnet6="fd00::/126",
    )


def test_leases_of_one_call_share_nothing() -> None:
    leases = list(leased(*({"name": f"vm{number}"} for number in range(300))).values())
    for column in ("address", "subnet", "mac", "tap", "cid"):
        assert len({getattr(lease, column) for lease in leases}) == 300


def test_subnets_of_another_prefix() -> None:
    pool = {"cidr": "10.1.0.0/16", "prefix": 24}
    leases = leased(*({"name": name, "pool": pool} for name in "abc"))
    assert [(lease.subnet, lease.host_address, lease.address, lease.prefix) for lease in leases.values()] == [
        (f"10.1.{number}.0/24", f"10.1.{number}.1", f"10.1.{number}.2", 24) for number in range(3)
    ]


def test_what_is_excluded_or_in_use_on_the_host_is_passed_over() -> None:
    pool = {"cidr": "10.0.0.0/28", "prefix": 30, "exclude": ["10.0.0.4/32"]}
    host = HostNetwork((ip_network("10.0.0.8/31"), ip_network("fd00::/8")), frozenset({"chtap0", "eth0"}))
    result = planned({"name": "a", "pool": pool}, {"name": "b", "pool": pool}, {"name": "c", "pool": pool}, host=host)
    assert [(lease.name, lease.subnet, lease.tap) for lease in result.added] == [
        ("a", "10.0.0.0/30", "chtap1"),
        ("b", "10.0.0.12/30", "chtap2"),
    ]
    assert "of 4, 2 leases lie in it and the rest is excluded or in use on the host" in error(result, "c")


@pytest.mark.parametrize("address", ["10.0.0.6", "10.0.0.10"])
def test_a_fixed_address_is_not_one_that_is_excluded_or_in_use(address: str) -> None:
    pool = {"cidr": "10.0.0.0/28", "prefix": 30, "exclude": ["10.0.0.4/32"]}
    host = HostNetwork((ip_network("10.0.0.8/31"),))
    result = planned({"name": "a", "pool": pool, "address": address}, host=host)
    assert "excluded, or in use on the host" in error(result, "a")


@pytest.mark.parametrize("prefix", ["chtap", "a", "abcdefghij"])
def test_a_taps_name_fits_however_many_there_are(prefix: str) -> None:
    taken = frozenset(f"{prefix}{number}" for number in range(99_999))
    (lease,) = planned({"name": "a", "tap_prefix": prefix}, host=HostNetwork((), taken)).added
    assert (lease.tap, len(lease.tap) <= 15) == (f"{prefix}99999", True)


def test_a_vm_gets_its_lease_back_and_a_hole_is_filled() -> None:
    before = leased({"name": "a"}, {"name": "b"}, {"name": "c"})
    result = planned({"name": "b", "state": "absent"}, {"name": "c"}, {"name": "d"}, leases=before)
    assert result.outcomes["b"] is None
    assert result.outcomes["c"] == before["c"]
    assert [lease.name for lease in result.removed] == ["b"]
    assert [(lease.name, lease.address, lease.tap, lease.cid) for lease in result.added] == [
        ("d", before["b"].address, before["b"].tap, before["b"].cid)
    ]


def test_pools_that_overlap_hand_out_nothing_twice() -> None:
    wide, narrow = {"cidr": "10.0.0.0/24", "prefix": 30}, {"cidr": "10.0.0.0/28", "prefix": 30}
    leases = leased(*({"name": f"vm{n}", "pool": wide if n % 2 else narrow} for n in range(4)))
    assert len({lease.subnet for lease in leases.values()}) == 4


@pytest.mark.parametrize("first", [0, 1])
def test_pools_of_different_prefixes_never_overlap(first: int) -> None:
    small, large = {"cidr": "10.0.0.0/24", "prefix": 30}, {"cidr": "10.0.0.0/24", "prefix": 28}
    fixed = {"name": "fixed", "pool": small, "address": "10.0.0.70"}
    items = [{"name": f"vm{n}", "pool": (small, large)[(n + first) % 2]} for n in range(6)]
    subnets = [ip_network(lease.subnet) for lease in leased(*items[:3], fixed, *items[3:]).values()]
    assert len(subnets) == 7
    assert not any(one.overlaps(other) for one, other in combinations(subnets, 2))


def test_an_exhausted_pool_is_named_and_the_others_are_served() -> None:
    pool = {"cidr": "10.0.0.0/29", "prefix": 30}
    result = planned(*({"name": name, "pool": pool} for name in "abc"), {"name": "d"})
    assert "VM 'c', option 'pool': the pool 10.0.0.0/29 has no free /30 left: of 2, 2 leases" in error(result, "c")
    assert [lease.name for lease in result.added] == ["a", "b", "d"]


def test_a_fixed_address() -> None:
    assert leased({"name": "a", "address": "10.213.7.2"})["a"].subnet == "10.213.7.0/30"
    assert leased({"name": "a", "address": "10.1.0.77", "pool": {"cidr": "10.1.0.0/24", "prefix": 24}})["a"].mac == (
        "02:63:0a:01:00:4d"
    )


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("10.213.7.1", "can be no guest's address"),
        ("10.213.7.0", "can be no guest's address"),
        ("10.99.0.2", "can be no guest's address in the pool 10.213.0.0/16"),
        ("10.213.0.2", "lies in 10.213.0.0/30, which VM 'a' has leased"),
    ],
)
def test_fixed_addresses_that_cannot_be(address: str, message: str) -> None:
    result = planned({"name": "a"}, {"name": "b", "address": address})
    assert error(result, "b").startswith("VM 'b', option 'address'")
    assert message in error(result, "b")


def test_a_mac_is_handed_out_once() -> None:
    result = planned({"name": "a", "mac": "02:00:00:00:00:01"}, {"name": "b", "mac": "02:00:00:00:00:01"})
    assert "02:00:00:00:00:01 is the MAC of VM 'a'" in error(result, "b")


@pytest.mark.parametrize(
    "asked",
    [
        {"address": "10.213.9.2"},
        {"mac": "02:00:00:00:00:01"},
        {"pool": {"cidr": "10.0.0.0/24"}},
        {"pool": {"prefix": 28}},
        {"pool6": {"cidr": "fd00::/64"}},
    ],
)
def test_asking_for_another_lease_is_refused(asked: dict[str, Any]) -> None:
    (option,) = asked
    result = planned({"name": "a", **asked}, leases=leased({"name": "a"}))
    assert error(result, "a").startswith(f"VM 'a', option '{option}': has leased")
    assert not result.added


def test_a_vm_whose_lease_was_refused_can_be_asked_again_without_the_option() -> None:
    before = leased({"name": "a", "pool": {"cidr": "10.0.0.0/24"}})
    assert planned({"name": "a"}, leases=before).outcomes["a"] == before["a"]
