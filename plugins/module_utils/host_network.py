# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The networks that a host already knows, by iproute2."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network

from .addressing import Network
from .runner import Runner


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """What is taken on a host: the networks of its addresses and routes, and the names of its interfaces."""

    networks: tuple[Network, ...] = ()
    interfaces: frozenset[str] = frozenset()


def in_use(runner: Runner, *, besides: Collection[str]) -> HostNetwork:
    """Return what is taken on the host, but for the default routes. Raises CommandFailed.

    The interfaces named in ``besides`` are left out: they are the TAPs of leases.
    """
    # One process for both, which would be most of the time that a lease takes; a route's family shows in it.
    shown = runner.run(["ip", "-json", "-batch", "-"], stdin="address show\nroute show table all\n").stdout
    links, routes = (json.loads(line) for line in shown.splitlines() if line.strip())
    others = [link for link in links if "ifname" in link and link["ifname"] not in besides]
    addresses = [address for link in others for address in link.get("addr_info", ()) if "local" in address]
    networks = [ip_interface(f"{address['local']}/{address['prefixlen']}").network for address in addresses]
    networks += [
        ip_network(route["dst"]) for route in routes if route["dst"] != "default" and route.get("dev") not in besides
    ]
    return HostNetwork(tuple(networks), frozenset(link["ifname"] for link in others))
