# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The firewall of a host's VMs: what is asked, what the kernel has, and one transaction from this to that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import firewall_ruleset as ruleset
from . import nft
from .bulk import Outcome
from .errors import MicrovmError
from .files import locked_directory, replacing
from .firewall_policy import Policy, parse, refuse_conflicts
from .firewall_ruleset import ARP_FAMILY, FAMILY, TABLE
from .names import check_vm_name
from .runner import Runner

# What was asked of each VM, so that one can be removed by its name, and all can be had back by whichever run comes next.
RECORD = "firewall.json"
# For nftables.service, at the host's next boot.
RULESET = "cloud_hypervisor.nft"


@dataclass(frozen=True, slots=True)
class Report:
    """Each VM's outcome, the uplinks, and chains of other tables that drop what this one accepts."""

    outcomes: dict[str, Outcome | MicrovmError]
    uplinks: list[str]
    foreign_drops: list[str]


def ensure(
    items: Iterable[Mapping[str, Any]],
    *,
    state_dir: Path,
    runner: Runner,
    uplink: str | None = None,
    check_mode: bool = False,
) -> Report:
    """Bring each VM's rules to what its options say, in one transaction. Raises MicrovmError; nothing has changed then."""
    items = list(items)
    directory = state_dir / "nftables"
    with locked_directory(directory, make=not check_mode):
        recorded = _read(directory)
        before = dict(recorded["vms"])
        wanted, errors = _wanted(items, before)
        policies = {name: parse(options) for name, options in wanted.items()}
        errors |= {
            name: error
            for name, error in refuse_conflicts(_recorded_first(policies, before)).items()
            if name in {item["name"] for item in items}
        }
        errors |= _taken_ports(runner, {name: policies[name] for name in policies if wanted[name] != before.get(name)})
        for name in errors:
            policies.pop(name, None)
            wanted.pop(name, None)
            if name in before:
                wanted[name], policies[name] = before[name], parse(before[name])
        uplinks = _uplinks(runner, uplink, recorded["uplinks"], needed=bool(policies))

        live = _live(runner)
        target = ruleset.elements(policies.values(), uplinks) if policies else set()
        commands = _commands(live, target, bool(policies))
        if not check_mode:
            if commands:
                nft.transaction(runner, commands)
            _persist(directory, runner, wanted, uplinks, anew=bool(commands))
    outcomes: dict[str, Outcome | MicrovmError] = {}
    for item in items:
        name = item["name"]
        outcomes[name] = errors[name].for_vm(name) if name in errors else _outcome(name, before, wanted, policies, live)
    return Report(outcomes, uplinks, foreign_drops(nft.chains(runner)) if policies else [])


def _wanted(
    items: Sequence[Mapping[str, Any]], before: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, MicrovmError]]:
    """Return the options of all VMs as they shall be, and the errors of those whose options are wrong."""
    wanted = dict(before)
    errors: dict[str, MicrovmError] = {}
    for item in items:
        name = item["name"]
        try:
            check_vm_name(name)
            if item.get("state") == "absent":
                wanted.pop(name, None)
                continue
            options = {key: value for key, value in item.items() if key != "state" and value is not None}
            parse(options)
            # As it will be read back.
            wanted[name] = json.loads(json.dumps(options))
        except MicrovmError as error:
            errors[name] = error
    return wanted, errors


def _recorded_first(policies: Mapping[str, Policy], before: Mapping[str, Any]) -> list[Policy]:
    """Return the policies so that what a VM has counts before what another asks for."""
    return sorted(policies.values(), key=lambda policy: policy.name not in before)


def _outcome(
    name: str,
    before: Mapping[str, Any],
    wanted: Mapping[str, Any],
    policies: Mapping[str, Policy],
    live: _Live,
) -> Outcome:
    own = ruleset.of_vm(policies[name]) if name in policies else set()
    had = ruleset.of_vm(parse(before[name])) if name in before else set()
    added = own - live.elements
    removed = (had - own) & live.elements
    changed = bool(added or removed) or before.get(name) != wanted.get(name) or (bool(own) and not live.intact)
    actions = [f"added {len(added)} elements"] if added else []
    actions += [f"removed {len(removed)} elements"] if removed else []
    if own and not live.intact:
        actions.append("loaded the rules")
    return Outcome(
        changed=changed,
        facts={"state": "present" if own else "absent"},
        before={"elements": ruleset.shown(had & live.elements)},
        after={"elements": ruleset.shown(own)},
        actions=tuple(actions),
    )


# ---- What is there ----


@dataclass(frozen=True, slots=True)
class _Live:
    elements: set[ruleset.Element]
    # Whether the rules are there, all of them and in order.
    intact: bool
    there: bool


def _live(runner: Runner) -> _Live:
    objects = [*nft.table(runner, FAMILY, TABLE), *nft.table(runner, ARP_FAMILY, TABLE)]
    comments: dict[tuple[str, str], list[str]] = {}
    for shown in objects:
        if "chain" in shown:
            comments.setdefault((shown["chain"]["family"], shown["chain"]["name"]), [])
        if "rule" in shown:
            rule = shown["rule"]
            comments.setdefault((rule["family"], rule["chain"]), []).append(rule.get("comment", ""))
    return _Live(ruleset.listed(objects), comments == ruleset.rule_comments(), bool(objects))


def _commands(live: _Live, target: set[ruleset.Element], needed: bool) -> list[nft.Json]:
    if not needed:
        return ruleset.removal() if live.there else []
    if not live.intact:
        return [*ruleset.base(), *ruleset.changes(set(), target)]
    return ruleset.changes(live.elements, target)


def _uplinks(runner: Runner, uplink: str | None, recorded: list[str], *, needed: bool) -> list[str]:
    """Return the interfaces that lead out: the given one, else those of the default routes, else those on record."""
    if not needed:
        return []
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


def _taken_ports(runner: Runner, policies: Mapping[str, Policy]) -> dict[str, MicrovmError]:
    """Return an error for each VM that asks for a port which a process of the host listens on."""
    forwards = [(name, forward) for name, policy in policies.items() for forward in policy.forwards]
    if not forwards:
        return {}
    errors = {}
    listening = _listening(runner.run(["ss", "-H", "-l", "-n", "-t", "-u"]).stdout)
    for name, forward in forwards:
        for proto, address, port in listening:
            if proto == forward.proto and forward.ports[0] <= port <= forward.ports[1]:
                if forward.host_address is not None and address not in (None, forward.host_address):
                    continue
                if address is not None and address.startswith("127."):
                    continue
                errors[name] = MicrovmError(
                    f"a process of the host listens on {port}/{proto} already; forward another port",
                    option="forwards.port",
                )
    return errors


_LISTENING = re.compile(r"(tcp|udp)\s+\S+\s+\S+\s+\S+\s+(\S+):(\d+)\s")


def _listening(text: str) -> list[tuple[str, str | None, int]]:
    """Return protocol, address and port of what ``ss`` lists; the address is None where it is any."""
    found: list[tuple[str, str | None, int]] = []
    for line in text.splitlines():
        if match := _LISTENING.match(line):
            address = match[2].strip("[]").partition("%")[0]
            found.append((match[1], None if address in ("*", "0.0.0.0", "::") else address, int(match[3])))  # noqa: S104
    return found


def foreign_drops(chains: Iterable[nft.Json]) -> list[str]:
    """Return the chains of other tables that drop by default where VMs' packets pass: accepting here does not help then.

    Such are the tables of Docker, ufw and firewalld. Pure.
    """
    return sorted(
        f"{chain['family']} {chain['table']} {chain['name']}"
        for chain in chains
        if chain.get("hook") in ("forward", "input") and chain.get("policy") == "drop" and chain["table"] != TABLE
    )


# ---- What was asked ----


def _read(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / RECORD).read_bytes()))
    except FileNotFoundError:
        return {"vms": {}, "uplinks": []}
    except ValueError as error:
        raise MicrovmError(
            f"'{directory / RECORD}' is not JSON ({error}); remove it and ask for all VMs again"
        ) from error


def _persist(directory: Path, runner: Runner, vms: Mapping[str, Any], uplinks: Sequence[str], *, anew: bool) -> None:
    """Write what was asked, and the ruleset for the next boot; leave nothing where no VM is left."""
    if not vms:
        for name in (RECORD, RULESET):
            (directory / name).unlink(missing_ok=True)
        directory.rmdir()
        return
    record = json.dumps({"vms": vms, "uplinks": list(uplinks)}, indent=1, sort_keys=True).encode()
    if not (directory / RECORD).exists() or (directory / RECORD).read_bytes() != record:
        with replacing(directory / RECORD) as file:
            file.write(record)
    if anew or not (directory / RULESET).exists():
        families = (FAMILY, ARP_FAMILY)
        cleared = [f"table {family} {TABLE}\ndelete table {family} {TABLE}\n" for family in families]
        with replacing(directory / RULESET, mode=0o644) as file:
            file.write("".join([*cleared, *(nft.text(runner, family, TABLE) for family in families)]).encode())
