# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the firewall has to know of its host: the way out, the ports that are taken, the other tables that drop."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from .errors import CommandFailed, MicrovmError
from .firewall_policy import Forward, Policy
from .firewall_sets import TABLE
from .nft_expressions import Json
from .runner import Runner


def uplinks(runner: Runner, uplink: str | None, recorded: list[str]) -> list[str]:
    """Return the interfaces that lead out: the given one, else those of the default routes, else those on record.

    Raises MicrovmError where the given one is not there, and where none is known.
    """
    if uplink is not None:
        links = json.loads(runner.run(["ip", "-json", "link", "show"]).stdout)
        names = [link["ifname"] for link in links]
        if uplink not in names:
            raise MicrovmError(
                f"there is no interface '{uplink}' on the host; there are {', '.join(names)}", option="uplink"
            )
        return [uplink]
    found = set()
    for family in ("-4", "-6"):
        routes = json.loads(runner.run(["ip", "-json", family, "route", "show", "default"]).stdout or "[]")
        found |= {route["dev"] for route in routes if "dev" in route}
    if not found and not recorded:
        raise MicrovmError(
            "the host has no default route that tells it; name the interface that leads out", option="uplink"
        )
    return sorted(found) or recorded


def taken_ports(runner: Runner, policies: Mapping[str, Policy]) -> dict[str, MicrovmError]:
    """Return an error for each VM that asks for a port which a process of the host listens on."""
    if not any(policy.forwards for policy in policies.values()):
        return {}
    listening = _listening(runner.run(["ss", "-H", "-l", "-n", "-t", "-u"]).stdout)
    errors = {}
    for name, policy in policies.items():
        for forward in policy.forwards:
            for proto, address, port in listening:
                if _takes(proto, address, port, forward):
                    errors[name] = MicrovmError(
                        f"a process of the host listens on {port}/{proto} already; forward another port",
                        option="forwards.port",
                        vm=name,
                    )
    return errors


def _takes(proto: str, address: str | None, port: int, forward: Forward) -> bool:
    if proto != forward.proto or not forward.ports[0] <= port <= forward.ports[1]:
        return False
    if address is None:
        return True
    # What is forwarded never is for the loopback address.
    return forward.host_address in (None, address) and not address.startswith("127.") and address != "::1"


_LISTENING = re.compile(r"(tcp|udp)\s+\S+\s+\S+\s+\S+\s+(\S+):(\d+)\s")


def _listening(text: str) -> list[tuple[str, str | None, int]]:
    """Return protocol, address and port of what ``ss`` lists; the address is None where it is any."""
    found: list[tuple[str, str | None, int]] = []
    for line in text.splitlines():
        if match := _LISTENING.match(line):
            address = match[2].strip("[]").partition("%")[0].strip("[]")
            found.append((match[1], None if address in ("*", "0.0.0.0", "::") else address, int(match[3])))  # noqa: S104
    return found


def forget_connections(runner: Runner, addresses: Iterable[str]) -> None:
    """Have the kernel forget the connections of these addresses, which would go on with whoever gets the address next.

    They are those that a VM began, and those that came to it through a forward. Without the command conntrack they end by
    themselves, as late as the protocol has it.
    """
    for address in addresses:
        family = "ipv6" if ":" in address else "ipv4"
        for side in ("--orig-src", "--reply-src"):
            try:
                # It fails where there are none.
                runner.run(["conntrack", "--delete", "--family", family, side, address], check=False)
            except CommandFailed:
                return


# ---- Other tables ----

# The hooks that what a VM sends and gets passes, and where a verdict to drop is the last word (nft(8), CHAINS).
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


def foreign_drops(objects: Iterable[Json]) -> list[str]:
    """Return the chains of other tables that drop or reject whatever they do not accept: accepting here does not help then.

    Such are those of Docker and ufw, by their policy, and of firewalld, by a last rule without a condition. ``objects`` is
    what nft lists, rules and all. Pure.
    """
    chains: dict[tuple[str, str, str], Json] = {}
    last: dict[tuple[str, str, str], Json] = {}
    for shown in objects:
        if chain := shown.get("chain"):
            chains[chain["family"], chain["table"], chain["name"]] = chain
        elif rule := shown.get("rule"):
            last[rule["family"], rule["table"], rule["chain"]] = rule
    return sorted(
        " ".join(key)
        for key, chain in chains.items()
        if chain["table"] != TABLE
        and chain["family"] in ("ip", "ip6", "inet")
        and chain.get("type") == "filter"
        and chain.get("hook") in _HOOKS
        and (chain.get("policy") == "drop" or _drops_all(last.get(key, {})))
    )


def _drops_all(rule: Json) -> bool:
    """Return whether a rule drops or rejects without a condition; to count, log and comment is none."""
    parts = [part for part in rule.get("expr", ()) if not set(part) & {"counter", "log"} and not _xt(part, "comment")]
    return len(parts) == 1 and bool(set(parts[0]) & {"drop", "reject"} or _xt(parts[0], "REJECT"))


def _xt(part: Json, name: str) -> bool:
    """Return whether this is an extension of iptables, which nft lists by its name."""
    shown = part.get("xt")
    return isinstance(shown, dict) and shown.get("name") == name


def legacy_drops(runner: Runner) -> list[str]:
    """Return the chains that drop by their policy in the tables of iptables before nftables, which nft does not see."""
    found = []
    for command in ("iptables-legacy-save", "ip6tables-legacy-save"):
        try:
            text = runner.run([command]).stdout
        except CommandFailed:  # without the command, nobody has made such tables
            continue
        table = ""
        for line in text.splitlines():
            table = line[1:] if line.startswith("*") else table
            # ":FORWARD DROP [0:0]"
            if table == "filter" and line.startswith(":") and line.split()[1:2] == ["DROP"]:
                found.append(f"{command.removesuffix('-save')} {table} {line[1:].split()[0]}")
    return found
