# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import placement
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.capacity import Ratios
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.placement import Demand, Host, Plan

GIB = 1 << 30
# What is there is promised once.
ONCE = Ratios(memory_ratio=1.0, vcpu_ratio=1.0, disk_ratio=1.0)


def host(name: str, memory: int = 8, vcpus: int = 8, disk: int = 100, vms: tuple[str, ...] = ()) -> Host:
    return Host(name, memory * GIB, 0, vcpus, 0, disk * GIB, 0, frozenset(vms))


def vm(name: str, memory: int = 1, group: str | None = None, hosts: tuple[str, ...] | None = None) -> Demand:
    return Demand(name, memory * GIB, 1, GIB, group, None if hosts is None else frozenset(hosts))


def test_spread_and_pack() -> None:
    hosts, vms = [host("h1"), host("h2"), host("h3")], [vm("a"), vm("b"), vm("c")]
    assert placement.plan(vms, hosts, {}).placements == {"a": "h1", "b": "h2", "c": "h3"}
    assert placement.plan(vms, hosts, {}, strategy="pack").placements == {"a": "h1", "b": "h1", "c": "h1"}


def test_spread_goes_by_what_is_scarcer() -> None:
    # h1 has more memory left and hardly a vCPU.
    hosts = [Host("h1", 64 * GIB, 0, 8, 7, 100 * GIB, 0), Host("h2", 8 * GIB, GIB, 8, 1, 100 * GIB, 0)]
    assert placement.plan([vm("a")], hosts, {}).placements == {"a": "h2"}


def test_the_largest_and_the_least_free_to_choose_go_first() -> None:
    hosts = [host("h1", memory=4), host("h2", memory=3)]
    assert placement.plan([vm("a", 3), vm("b", 4)], hosts, {}, ratios=ONCE).placements == {"a": "h2", "b": "h1"}
    assert placement.plan([vm("a", 3), vm("b", 2, hosts=("h2",))], hosts, {}).placements == {"a": "h1", "b": "h2"}


def test_a_vm_that_is_placed_but_not_there_yet_takes_its_room() -> None:
    result = placement.plan([vm("a", 6), vm("b", 3)], [host("h1")], {"a": "h1"}, ratios=ONCE)
    assert result.refused == {"b": {"h1": "has 8192 MiB memory, times 1, and 6144 MiB promised; it takes 3072 MiB"}}


def test_what_a_host_has_counts_more_than_the_file() -> None:
    hosts = [host("h1", vms=("a",)), host("h2")]
    assert placement.plan([vm("a")], hosts, {"a": "h2"}).placements == {"a": "h1"}


def test_a_host_that_does_not_answer_keeps_its_vms() -> None:
    result = placement.plan([vm("a"), vm("b", group="x"), vm("c", group="x")], [host("h1")], {"a": "h9", "b": "h9"})
    assert result.placements == {"a": "h9", "b": "h9", "c": "h1"}
    assert result.new == {"c"}


def test_a_vm_on_two_hosts_is_an_error() -> None:
    with pytest.raises(MicrovmError, match="VM 'a': both 'h1' and 'h2' have a VM of this name"):
        placement.plan([], [host("h2", vms=("a",)), host("h1", vms=("a",))], {})


def test_each_host_gives_its_reason() -> None:
    hosts = [
        host("h1", memory=1),
        Host("h2", 8 * GIB, 0, 2, 2, 100 * GIB, 0),
        host("h3", disk=0),
        host("h4", vms=("b",)),
        host("h5"),
    ]
    wanted = [vm("a", 2, "web", ("h1", "h2", "h3", "h4")), vm("b", group="web")]
    result = placement.plan(wanted, hosts, {}, ratios=ONCE)
    assert result.refused == {
        "a": {
            "h1": "has 1024 MiB memory, times 1, and 0 MiB promised; it takes 2048 MiB",
            "h2": "has 2 vCPUs, times 1, and 2 promised; it takes 1",
            "h3": "has 0 MiB free disk space, times 1, and 0 MiB promised; it takes 1024 MiB",
            "h4": "has 'b', of the same anti_affinity 'web'",
            "h5": "is none of its hosts, h1, h2, h3, h4",
        }
    }
    assert placement.refusal(result).startswith("VM 'a' fits nowhere: h1 has 1024 MiB memory, times 1,")
    assert [line.split()[:3] for line in placement.table(result, wanted)[1:3]] == [
        ["a", "-", "refused"],
        ["b", "h4", "stays"],
    ]


def test_a_size_that_is_none_names_the_vm() -> None:
    with pytest.raises(MicrovmError, match=r"VM 'a', option 'vms.memory': 'much' is not a size"):
        Demand.of({"name": "a", "memory": "much", "vcpus": 1, "disk": "1GiB"})


# ---- What holds for any fleet ----

HOSTS = st.integers(0, 5).flatmap(
    lambda count: st.tuples(
        *(
            st.builds(
                Host,
                name=st.just(f"h{number}"),
                memory=st.integers(0, 16).map(lambda gib: gib * GIB),
                promised_memory=st.integers(0, 4).map(lambda gib: gib * GIB),
                vcpus=st.integers(0, 16),
                promised_vcpus=st.integers(0, 4),
                disk_free=st.integers(0, 40).map(lambda gib: gib * GIB),
                promised_disk=st.integers(0, 4).map(lambda gib: gib * GIB),
            )
            for number in range(count)
        )
    )
)
VMS = st.integers(0, 12).flatmap(
    lambda count: st.tuples(
        *(
            st.builds(
                Demand,
                name=st.just(f"vm{number}"),
                memory=st.integers(1, 8).map(lambda gib: gib * GIB),
                vcpus=st.integers(1, 4),
                disk=st.integers(1, 10).map(lambda gib: gib * GIB),
                anti_affinity=st.sampled_from([None, None, "web", "db"]),
                hosts=st.none() | st.frozensets(st.sampled_from(["h0", "h1", "h2"])),
            )
            for number in range(count)
        )
    )
)
RATIOS = st.sampled_from([1.0, 1.5, None])
STRATEGIES: st.SearchStrategy[placement.Strategy] = st.sampled_from(["spread", "pack"])


def check(
    result: Plan, vms: tuple[Demand, ...], hosts: tuple[Host, ...], placed: dict[str, str], ratio: float | None
) -> None:
    """Hold a plan, for VMs of which some were placed and none is there, to what it promises."""
    by_name = {demand.name: demand for demand in vms}
    new = {name: result.placements[name] for name in result.new}
    for there in hosts:
        all_here = [by_name[name] for name, where in result.placements.items() if where == there.name]
        if there.name in new.values() and ratio is not None:
            assert sum(demand.memory for demand in all_here) + there.promised_memory <= there.memory * ratio
            assert sum(demand.vcpus for demand in all_here) + there.promised_vcpus <= there.vcpus * ratio
            assert sum(demand.disk for demand in all_here) + there.promised_disk <= there.disk_free * ratio
    for name, where in new.items():
        allowed, group = by_name[name].hosts, by_name[name].anti_affinity
        assert allowed is None or where in allowed
        others = [other for other, place in result.placements.items() if place == where and other != name]
        assert group is None or group not in {by_name[other].anti_affinity for other in others}
    for name, where in placed.items():
        assert result.placements[name] == where
    assert result.placements.keys() | result.refused.keys() == by_name.keys()
    assert not result.placements.keys() & result.refused.keys()


@given(vms=VMS, hosts=HOSTS, strategy=STRATEGIES, ratio=RATIOS, data=st.data())
def test_capacity_and_anti_affinity_hold_and_what_is_placed_stays(
    vms: tuple[Demand, ...],
    hosts: tuple[Host, ...],
    strategy: placement.Strategy,
    ratio: float | None,
    data: st.DataObject,
) -> None:
    ratios = Ratios(ratio, ratio, ratio)
    placed = {
        demand.name: data.draw(st.sampled_from([there.name for there in hosts] + ["gone"]))
        for demand in vms
        if data.draw(st.booleans())
    }
    result = placement.plan(vms, hosts, placed, strategy=strategy, ratios=ratios)
    check(result, vms, hosts, placed, ratio)
    for reasons in result.refused.values():
        assert reasons.keys() == {there.name for there in hosts}
    again = placement.plan(vms, hosts, result.placements, strategy=strategy, ratios=ratios)
    assert again.placements == result.placements
    assert not again.new


@given(vms=VMS, hosts=HOSTS, strategy=STRATEGIES, seed=st.integers())
def test_the_order_does_not_matter(
    vms: tuple[Demand, ...], hosts: tuple[Host, ...], strategy: placement.Strategy, seed: int
) -> None:
    shuffle = random.Random(seed)  # noqa: S311
    other_vms, other_hosts = shuffle.sample(vms, len(vms)), shuffle.sample(hosts, len(hosts))
    assert placement.plan(vms, hosts, {}, strategy=strategy) == placement.plan(
        other_vms, other_hosts, {}, strategy=strategy
    )


@given(count=st.integers(1, 30))
def test_spread_over_equal_hosts_is_even(count: int) -> None:
    hosts = [host(f"h{number}", memory=100, vcpus=100) for number in range(3)]
    result = placement.plan([vm(f"vm{number}") for number in range(count)], hosts, {})
    counts = Counter(result.placements.values())
    assert max(counts.values()) - min(counts[there.name] for there in hosts) <= 1
