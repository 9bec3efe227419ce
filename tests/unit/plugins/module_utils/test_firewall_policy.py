# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.firewall_conflicts import refuse_conflicts
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.firewall_elements import group_id
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.firewall_policy import Rate, canonical, parse

VM: dict[str, Any] = {"name": "web", "tap": "chtap0", "mac": "02:63:0a:d5:00:02", "address": "10.213.0.2"}

NETWORKS = st.tuples(st.integers(0, 255), st.integers(24, 32)).map(
    lambda pair: str(ip_network(f"10.0.0.{pair[0]}/{pair[1]}", strict=False))
)
ALLOWED = st.fixed_dictionaries(
    {"cidr": NETWORKS},
    optional={"proto": st.sampled_from(["tcp", "udp"])},
).flatmap(
    lambda rule: (
        st.just(rule)
        if "proto" not in rule
        else st.tuples(st.integers(1, 20), st.integers(0, 9)).map(
            lambda pair: {**rule, "ports": f"{pair[0]}-{sum(pair)}"}
        )
    )
)


@given(st.lists(ALLOWED, max_size=6), st.integers(0, 255), st.sampled_from(["tcp", "udp", "icmp"]), st.integers(1, 30))
def test_what_is_allowed_stays_allowed_and_overlaps_nowhere(
    allowed: list[dict[str, str]], host: int, proto: str, port: int
) -> None:
    address = ip_address(f"10.0.0.{host}")

    def asked(rule: dict[str, str]) -> bool:
        first, _dash, last = rule.get("ports", "0-65535").partition("-")
        return address in ip_network(rule["cidr"]) and (
            "proto" not in rule or (rule["proto"] == proto and int(first) <= port <= int(last))
        )

    found = parse({**VM, "egress": {"allow": allowed}}).allow
    hits = [
        allow
        for allow in found
        if address in allow.network
        and (allow.proto is None or (allow.proto == proto and allow.ports[0] <= port <= allow.ports[1]))
    ]
    assert len(hits) == any(map(asked, allowed))


@pytest.mark.parametrize(
    ("options", "option", "message"),
    [
        ({"tap": None}, "tap", "is missing; ch_lease returns it"),
        ({"mac": None}, "mac", "is missing; ch_lease returns it"),
        ({"mac": "1"}, "mac", "is not a unicast MAC"),
        ({"address": "fd00::2"}, "address", "is not an IPv4 address"),
        ({"address": "10.0.0.0/24"}, "address", "is not an IPv4 address"),
        ({"address6": "10.0.0.2"}, "address6", "is not an IPv6 address"),
        ({"subnet": "10.213.0.4/30"}, "address", "10.213.0.2 is not in 10.213.0.4/30, the subnet of the VM's lease"),
        ({"subnet": "x"}, "subnet", "is not a network"),
        ({"groups": ["a b"]}, "groups", "'a b' does not name a group"),
        ({"groups": [f"g{n}" for n in range(9)]}, "groups", "9 groups are too many for one VM; 8 is the most"),
        ({"egress": {"groups": ["-"]}}, "egress.groups", "'-' does not name a group"),
        ({"egress": {"allow": [{"cidr": "10.0.0.1/8"}]}}, "egress.allow.cidr", "has host bits set"),
        ({"egress": {"allow": [{"cidr": "10.0.0.0/8", "ports": 1}]}}, "egress.allow.proto", "give proto as well"),
        ({"forwards": [{"port": "1-2000"}]}, "forwards.port", "2000' are 2000 ports; 1024 is the most"),
        ({"forwards": [{"port": "1-2", "guest_port": 65535}]}, "forwards.guest_port", "ends past 65535"),
        ({"forwards": [{"port": 1, "host_address": "x"}]}, "forwards.host_address", "'x' is not an address"),
        ({"forwards": [{"port": 1, "sources": ["x"]}]}, "forwards.sources", "'x' is not a network"),
        ({"host_services": [{"port": 0}]}, "host_services.port", "is neither a port"),
        ({"new_connections": {"out": {"rate": 0}}}, "new_connections.out.rate", "0 is not a number of connections"),
        ({"new_connections": {"in": {"rate": 1, "burst": 0}}}, "new_connections.in.burst", "0 is not a number"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], option: str, message: str) -> None:
    with pytest.raises(MicrovmError) as caught:
        parse({**VM, **options})
    assert caught.value.option == option
    assert message in str(caught.value)


def test_defaults() -> None:
    policy = parse(VM)
    assert policy.egress and not policy.private
    assert policy.rate_in is policy.rate_out is None
    assert parse({**VM, "new_connections": {"out": {"rate": 7}}}).rate_out == Rate(7, "second", 5)


def test_sources_that_overlap_are_one() -> None:
    forward = {"port": 80, "sources": ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "fd00::/9"]}
    (parsed,) = parse({**VM, "forwards": [forward]}).forwards
    assert parsed.sources == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def test_canonical_options_are_in_one_spelling() -> None:
    asked = {**VM, "mac": "02:63:0A:D5:00:02", "address6": "FD00:0::0:2", "groups": ("a",), "egress": None}
    asked["forwards"] = [{"port": "80", "guest_port": None, "sources": None}]
    assert canonical(asked) == {**VM, "address6": "fd00::2", "groups": ["a"], "forwards": [{"port": "80"}]}


def test_groups_with_one_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    conflicts = "ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.firewall_conflicts"
    monkeypatch.setattr(f"{conflicts}.group_id", lambda name: group_id(name) % 1 + 1)
    vms = [{**VM, "groups": ["a"]}, {"name": "db", "egress": {"groups": ["b"]}}, {"name": "x", "groups": ["a"]}]
    assert {name: str(error) for name, error in refuse_conflicts(vms).items()} == {
        "db": "VM 'db', option 'groups': 'b' and 'a' happen to get one number; rename one"
    }
