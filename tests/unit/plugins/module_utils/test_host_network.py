# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The real ip(8), in a network namespace of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import lease_store
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import CommandFailed
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.host_network import HostNetwork, in_use
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import Completed, HostRunner

SETUP = """
ip link set lo up
ip link add uplink type veth peer name other
ip link set other up
ip link set uplink up
ip address add 192.0.2.2/24 dev uplink
ip address add 2001:db8::2/64 dev uplink nodad
ip route add default via 192.0.2.1
ip -6 route add default via 2001:db8::1
ip route add 198.51.100.0/24 via 192.0.2.9
ip route add blackhole 203.0.113.0/24
ip route add 10.213.0.8/29 dev uplink table 100
ip tuntap add dev chtap0 mode tap
ip address add 10.213.0.1/30 dev chtap0
ip -6 address add fd00:7::1/126 dev chtap0 nodad
ip link set chtap0 up
ip tuntap add dev chtap1 mode tap
"""


class Host:
    """Runs each command in a namespace that is made as SETUP says."""

    def __init__(self, setup: str) -> None:
        self.setup = setup

    def run(self, argv: Sequence[str], **options: object) -> Completed:
        script = f'set -e\n{self.setup}\nexec "$@"\n'
        return HostRunner().run(["unshare", "--net", "sh", "-c", script, "sh", *argv], **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    with suppress(CommandFailed):
        HostRunner().run(["unshare", "--net", "true"])
        return
    pytest.skip("needs the right to make a network namespace")


def test_addresses_and_routes_but_the_default_ones_and_those_of_leases() -> None:
    found = in_use(Host(SETUP), besides={"chtap0"})
    assert found.interfaces == {"lo", "uplink", "other", "chtap1"}
    wanted = (
        "127.0.0.0/8",
        "::1/128",
        "192.0.2.0/24",
        "192.0.2.2/32",
        "2001:db8::/64",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "10.213.0.8/29",
    )
    assert {ip_network(text) for text in wanted} <= set(found.networks)
    assert ip_network("0.0.0.0/0") not in found.networks and ip_network("::/0") not in found.networks
    assert not any(network.overlaps(ip_network("10.213.0.0/30")) for network in found.networks if network.version == 4)
    assert not any(network.overlaps(ip_network("fd00:7::/126")) for network in found.networks if network.version == 6)


def test_a_tap_that_is_no_leases_counts() -> None:
    found = in_use(Host(SETUP), besides=())
    assert {ip_network("10.213.0.0/30"), ip_network("fd00:7::/126")} <= set(found.networks)
    assert "chtap0" in found.interfaces


def test_a_host_without_a_network() -> None:
    assert in_use(Host(""), besides=()) == HostNetwork((), frozenset({"lo"}))


def test_a_lease_avoids_what_the_host_has(tmp_path: Path) -> None:
    outcome = lease_store.ensure(
        [{"name": "web", "pool6": {"cidr": "fd00:7::/64"}}], state_dir=tmp_path, runner=Host(SETUP)
    )["web"]
    assert isinstance(outcome, Outcome)
    # 10.213.0.0/30 is an address's, .8/29 a route's; chtap0 and chtap1 are there.
    assert [outcome.facts[key] for key in ("subnet", "subnet6", "tap")] == ["10.213.0.4/30", "fd00:7::4/126", "chtap2"]
