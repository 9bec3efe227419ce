# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The firewall's sets and maps, which hold what is particular to a VM. Pure.

Their look-up costs the same for one VM as for a thousand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Union

from .firewall_policy import MAX_GROUPS

# The inet family does not see ARP.
FAMILY, ARP_FAMILY, TABLE = "inet", "arp", "cloud_hypervisor"

# Why a packet of a VM, or in the last case one to it, is dropped. Each has a chain, and a set whose elements count by VM.
REASONS = ("forged", "invalid", "rate", "egress", "vm", "host", "incoming")
GROUP_SLOTS = range(1, MAX_GROUPS + 1)

Types = Union[str, list[str]]


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or with ``value`` a map: the types of its key and value, whether keys are ranges, and whether elements count."""

    key: Types
    value: Types | None = None
    ranges: bool = False
    counts: bool = False


_ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
_HOST_PORT = {version: [_ADDRESS[version], "inet_proto", "inet_service"] for version in (4, 6)}


def _of_both(name: str, made: Mapping[int, Set]) -> dict[tuple[str, str], Set]:
    return {(FAMILY, f"{name}{version}"): made[version] for version in (4, 6)}


SETS: Mapping[tuple[str, str], Set] = {
    (FAMILY, "taps"): Set("ifname"),
    (FAMILY, "uplinks"): Set("ifname"),
    (FAMILY, "macs"): Set(["ifname", "ether_addr"]),
    # Their elements count what a VM sends and what it gets.
    **_of_both("sources", {v: Set(["ifname", "ether_addr", _ADDRESS[v]], counts=True) for v in (4, 6)}),
    **_of_both("targets", {v: Set(["ifname", _ADDRESS[v]], counts=True) for v in (4, 6)}),
    (FAMILY, "rates_out"): Set("ifname", "limit"),
    (FAMILY, "rates_in"): Set("ifname", "limit"),
    (FAMILY, "egress_any"): Set("ifname"),
    (FAMILY, "egress_private"): Set("ifname"),
    **_of_both("egress_nets", {v: Set(["ifname", _ADDRESS[v]], ranges=True) for v in (4, 6)}),
    **_of_both("egress_ports", {v: Set(["ifname", *_HOST_PORT[v]], ranges=True) for v in (4, 6)}),
    # The groups whose VMs one may reach, as numbers, one in each map, and who is in a group.
    **{(FAMILY, f"groups{slot}"): Set("ifname", "mark") for slot in GROUP_SLOTS},
    (FAMILY, "members"): Set(["mark", "ifname"]),
    (FAMILY, "host_services"): Set(["ifname", "inet_proto", "inet_service"], ranges=True),
    # Two maps, since the JSON of nft 1.0 knows no map to an address and a port together.
    **_of_both("guests", {v: Set(_HOST_PORT[v], _ADDRESS[v], ranges=True) for v in (4, 6)}),
    **_of_both("guest_ports", {v: Set(_HOST_PORT[v], "inet_service", ranges=True) for v in (4, 6)}),
    **_of_both("clients", {v: Set([*_HOST_PORT[v], _ADDRESS[v]], ranges=True) for v in (4, 6)}),
    **_of_both("masquerade", {v: Set(_ADDRESS[v]) for v in (4, 6)}),
    **{(FAMILY, f"dropped_{reason}"): Set("ifname", counts=True) for reason in REASONS},
    (ARP_FAMILY, "taps"): Set("ifname"),
    (ARP_FAMILY, "macs"): Set(["ifname", "ether_addr"]),
    (ARP_FAMILY, "sources"): Set(["ifname", "ether_addr", "ipv4_addr"]),
    (ARP_FAMILY, "dropped_forged"): Set("ifname", counts=True),
}
