# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The networks that a host already knows, by iproute2."""

from __future__ import annotations

import json
from collections.abc import Collection
from ipaddress import ip_interface, ip_network

from .addressing import Network
from .runner import Runner


def networks_in_use(runner: Runner, *, besides: Collection[str]) -> list[Network]:
    """Return the networks of the host's addresses and routes, but the default routes.

    The interfaces named in ``besides`` are left out: they are the TAPs of leases. Raises CommandFailed.
    """
    used: list[Network] = []
    for link in json.loads(runner.run(["ip", "-json", "address", "show"]).stdout or "[]"):
        if link.get("ifname") not in besides:
            used += [
                ip_interface(f"{address['local']}/{address['prefixlen']}").network
                for address in link.get("addr_info", ())
                if "local" in address
            ]
    for family in ("-4", "-6"):
        shown = runner.run(["ip", "-json", family, "route", "show", "table", "all"]).stdout
        used += [
            ip_network(route["dst"])
            for route in json.loads(shown or "[]")
            if route["dst"] != "default" and route.get("dev") not in besides
        ]
    return used
