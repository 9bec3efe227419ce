# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who is there in the tests of the firewall: VMs with their policies, a host outside, and one of another network."""

from __future__ import annotations

from typing import Any

from lab import Lab, Link

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.firewall_elements import group_id

POLICIES: dict[str, dict[str, Any]] = {
    "one": {
        "forwards": [
            {"port": "8000-8001", "guest_port": 90},
            {"port": "8000-8001", "guest_port": 90, "proto": "udp"},
            {"port": 8100, "sources": ["198.51.100.0/25", "2001:db8::/65"], "proto": "udp"},
            {"port": 8101, "sources": ["198.51.100.128/25", "2001:db8::8000:0:0:0/65"], "proto": "udp"},
            {"port": 8200, "host_address": "198.51.100.1", "proto": "udp"},
            {"port": 8200, "host_address": "2001:db8::1", "proto": "udp"},
            {"port": 8201, "host_address": "192.168.7.1", "proto": "udp"},
            {"port": 8201, "host_address": "fd07::1", "proto": "udp"},
        ],
        "host_services": [{"port": 53, "proto": "udp"}, {"port": "50-55", "proto": "udp"}, {"port": 443}],
    },
    # Its TAP's name begins with the other's.
    "ten": {
        "egress": {
            "policy": "none",
            "allow": [
                {"cidr": "203.0.113.0/24"},
                {"cidr": "2001:db8:1::/48"},
                # They overlap in every way.
                {"cidr": "10.99.0.0/16", "proto": "tcp", "ports": "80-443"},
                {"cidr": "10.99.7.0/24", "proto": "tcp", "ports": "400-500"},
                {"cidr": "10.99.7.0/24", "proto": "tcp", "ports": "22"},
                {"cidr": "fd99::/16", "proto": "tcp", "ports": "80-443"},
                {"cidr": "203.0.113.128/25", "proto": "udp", "ports": "53"},
            ],
        },
    },
    "private": {"egress": {"private": True}},
    "web1": {"groups": ["web"]},
    "web2": {"groups": ["web", "more"]},
    # One of each group that it may reach, as many as there can be; and none may reach it.
    "hub": {"egress": {"groups": [f"group{number}" for number in range(1, 9)]}},
    **{f"spoke{number}": {"groups": [f"group{number}"]} for number in range(1, 9)},
    "slow": {
        # So few that no second one is earned while the tests run.
        "new_connections": {"out": {"rate": 1, "per": "day", "burst": 2}, "in": {"rate": 1, "per": "day", "burst": 2}},
        "forwards": [{"port": 8300, "proto": "udp"}],
        "host_services": [{"port": 53, "proto": "udp"}],
    },
    "public": {},
}
TAPS = {name: f"chtap{number}" for number, name in enumerate(POLICIES, start=100)} | {"one": "chtap1", "ten": "chtap10"}
LINKS = {**TAPS, "out": "up0", "lan": "lan0"}
_NUMBERS = {name: number for number, name in enumerate(POLICIES, start=0)}

# The host has its own address on each link; "host" is the one outside.
ADDRESSES: dict[str, dict[int, str]] = {
    **{name: {4: f"10.213.0.{4 * number + 2}", 6: f"fd00:0:0:{number + 1:x}::2"} for name, number in _NUMBERS.items()},
    "out": {4: "198.51.100.2", 6: "2001:db8::2"},
    "lan": {4: "192.168.7.2", 6: "fd07::2"},
    "host": {4: "198.51.100.1", 6: "2001:db8::1"},
    "loopback": {4: "127.0.0.1", 6: "::1"},
    # Beyond the host outside.
    "anywhere": {4: "203.0.113.9", 6: "2001:db8:1::9"},
    "elsewhere": {4: "192.0.2.9", 6: "2001:db8:2::9"},
    "corporate": {4: "10.99.7.9", 6: "fd99::9"},
    "metadata": {4: "169.254.169.254", 6: "fd99::254"},
}
# An address that all may send from and to: it does not go out with the host's.
ADDRESSES["public"][6] = "2a00:1450:4001::2"
GATEWAYS: dict[str, dict[int, str]] = {
    **{name: {4: f"10.213.0.{4 * number + 1}", 6: ADDRESSES[name][6][:-1] + "1"} for name, number in _NUMBERS.items()},
    "out": ADDRESSES["host"],
    "lan": {4: "192.168.7.1", 6: "fd07::1"},
}
MACS = {
    **{name: f"02:63:0a:d5:00:{4 * number + 2:02x}" for name, number in _NUMBERS.items()},
    "out": "02:00:00:00:00:01",
    "lan": "02:00:00:00:00:02",
}
VMS: dict[str, dict[str, Any]] = {
    name: {
        "name": name,
        "tap": TAPS[name],
        "mac": MACS[name],
        "address": ADDRESSES[name][4],
        "address6": ADDRESSES[name][6],
        **policy,
    }
    for name, policy in POLICIES.items()
}
# Another's table: it drops what leaves with the mark of a group.
OTHER_TABLE = [
    "add table inet other",
    "add chain inet other gone { type filter hook postrouting priority 10; }",
    f"add rule inet other gone oifname {TAPS['web2']} meta mark {group_id('web')} drop",
]
_SETTINGS = [
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    # What is dropped shall be dropped by the firewall, and nothing looked for on the links.
    *(f"net.ipv4.conf.{which}.rp_filter=0" for which in ("all", "default")),
    *(f"net.ipv6.conf.{which}.accept_dad=0" for which in ("all", "default")),
]


def build(namespace: str) -> Lab:
    """Make the host with all its links. Whoever calls it closes it."""
    lengths = {name: (30, 126) for name in TAPS} | {"out": (24, 64), "lan": (24, 64)}
    links = [
        Link(
            link,
            tuple(f"{GATEWAYS[name][version]}/{length}" for version, length in zip((4, 6), lengths[name], strict=True)),
            MACS[name],
            tuple(ADDRESSES[name].values()),
        )
        for name, link in LINKS.items()
    ]
    routes = [["route", "add", "default", "via", ADDRESSES["out"][version]] for version in (4, 6)]
    lab = Lab(namespace, links, _SETTINGS, routes)
    lab.runner.run(["nft", "--file", "-"], stdin="\n".join(OTHER_TABLE))
    return lab
