# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import ip_network

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.host_network import networks_in_use
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import Completed

# What iproute2 6.1 printed on a host with one TAP, cut to what is read.
ADDRESSES = [
    {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}, {"local": "::1", "prefixlen": 128}]},
    {"ifname": "chtap0", "addr_info": [{"local": "10.213.0.1", "prefixlen": 30}]},
    {"ifname": "eth0", "addr_info": [{"local": "192.0.2.2", "prefixlen": 24}]},
    {"ifname": "down"},
]
ROUTES = {
    "-4": [
        {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"},
        {"dst": "10.213.0.0/30", "dev": "chtap0"},
        {"dst": "198.51.100.0/24", "gateway": "192.0.2.9", "dev": "eth0"},
        {"type": "local", "dst": "192.0.2.2", "dev": "eth0", "table": "local"},
        {"type": "blackhole", "dst": "203.0.113.0/24"},
    ],
    "-6": [{"dst": "fe80::/64", "dev": "eth0"}],
}


class Iproute:
    def run(self, argv: Sequence[str], **_: object) -> Completed:
        return Completed(0, json.dumps(ADDRESSES if "address" in argv else ROUTES[argv[2]]), "")


def test_addresses_and_routes_but_the_default_ones_and_those_of_leases() -> None:
    assert set(networks_in_use(Iproute(), besides={"chtap0"})) == {
        ip_network(text)
        for text in (
            "127.0.0.0/8",
            "::1/128",
            "192.0.2.0/24",
            "198.51.100.0/24",
            "192.0.2.2/32",
            "203.0.113.0/24",
            "fe80::/64",
        )
    }


def test_a_tap_that_is_no_leases_counts() -> None:
    assert ip_network("10.213.0.0/30") in networks_in_use(Iproute(), besides=())
