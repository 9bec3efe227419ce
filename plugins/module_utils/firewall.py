# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The firewall of a host's VMs: what is asked, what the kernel has, and one transaction from this to that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import firewall_rules as rules
from . import firewall_store as store
from . import nft
from .bulk import Outcome
from .errors import CommandFailed, MicrovmError
from .files import locked_directory
from .firewall_conflicts import refuse_conflicts
from .firewall_elements import Element, changes, exactly, listed, of_uplinks, of_vm, shown
from .firewall_host import foreign_drops, forget_connections, legacy_drops, taken_ports, uplinks
from .firewall_policy import canonical, parse
from .firewall_sets import TABLE
from .names import check_vm_name
from .nft_expressions import Json
from .runner import Runner


@dataclass(frozen=True, slots=True)
class Report:
    """Each VM's outcome, the uplinks, chains of other tables that drop what this one accepts, and what else was put right."""

    outcomes: dict[str, Outcome | MicrovmError]
    uplinks: list[str]
    foreign_drops: list[str]
    repaired: list[str]


@dataclass(frozen=True, slots=True)
class _Live:
    """What the kernel has. ``elements`` are all of them or, where they are known to be right, those in question."""

    elements: set[Element]
    there: bool
    intact: bool
    all_elements: bool


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
        recorded = store.read(directory)
        wanted, errors = _wanted(items, recorded.vms)
        errors |= _refuse(wanted, recorded.vms, runner)
        names = [item["name"] for item in items]
        asked = set(names) - set(errors)
        if not asked:
            return Report(dict(errors), recorded.uplinks, [], [])
        ways_out = _ways_out(runner, uplink, recorded) if wanted else []

        before, after = _by_vm(asked, recorded.vms), _by_vm(asked, wanted)
        had, own = (of_uplinks(recorded.uplinks).union(*before.values()), of_uplinks(ways_out).union(*after.values()))
        objects = nft.rules(runner)
        # A call that is about all of the VMs looks at all there is.
        live = _live(runner, objects, had, own, whole=asked >= set(recorded.vms))
        target = own
        if live.all_elements:
            after = _by_vm({*wanted, *store.on_disk(directory), *asked}, wanted)
            target = of_uplinks(ways_out).union(*after.values())
        commands = _commands(live, target, needed=bool(wanted))
        if commands:
            _transact(runner, commands, check=True)
        stale = set(store.stale(directory, after))
        if not check_mode:
            if commands:
                _transact(runner, commands)
            record = store.Record(wanted, ways_out, uplink or recorded.uplink)
            anew = not live.intact or ways_out != recorded.uplinks
            store.write(directory, record, after, whole=anew, runner=runner)
            forget_connections(runner, sorted(_addresses(asked, recorded.vms) - _addresses(asked, wanted)))
    outcomes: dict[str, Outcome | MicrovmError] = {
        name: errors[name]
        if name in errors
        else _outcome(
            before[name], after[name], live, other=recorded.vms.get(name) != wanted.get(name), stale=name in stale
        )
        for name in names
    }
    of_asked = set().union(*before.values(), *(after[name] for name in asked))
    return Report(
        outcomes,
        ways_out,
        [*foreign_drops(objects), *legacy_drops(runner)] if wanted else [],
        shown((live.elements ^ target) - of_asked) if live.intact and wanted else [],
    )


# ---- What is asked ----

Vms = dict[str, dict[str, Any]]


def _wanted(items: Sequence[Mapping[str, Any]], recorded: Vms) -> tuple[Vms, dict[str, MicrovmError]]:
    """Return the options of all VMs as they shall be, and the errors of those whose options are wrong."""
    wanted = dict(recorded)
    errors: dict[str, MicrovmError] = {}
    for item in items:
        name = item["name"]
        try:
            check_vm_name(name)
            if item.get("state") == "absent":
                wanted.pop(name, None)
            else:
                wanted[name] = canonical({key: value for key, value in item.items() if key != "state"})
        except MicrovmError as error:
            errors[name] = error.for_vm(name)
    return wanted, errors


def _refuse(wanted: Vms, recorded: Vms, runner: Runner) -> dict[str, MicrovmError]:
    """Return the errors of VMs that ask for what another or a process has; they are ``wanted`` as they were before, then."""
    new = {name: parse(options) for name, options in wanted.items() if options != recorded.get(name)}
    errors = refused = taken_ports(runner, new)
    while True:
        for name in refused:
            del wanted[name]
            if name in recorded:
                wanted[name] = recorded[name]
        # What a VM has counts before what another asks for; and what a refused one keeps may be what another asks for.
        ordered = sorted(wanted.values(), key=lambda options: options != recorded.get(options["name"]))
        refused = refuse_conflicts(ordered)
        if not refused:
            return errors
        errors |= refused


def _ways_out(runner: Runner, uplink: str | None, recorded: store.Record) -> list[str]:
    """Return the interfaces that lead out; one that was given before stays, and need not be there any more."""
    if uplink is None and recorded.uplink is not None:
        return [recorded.uplink]
    return uplinks(runner, uplink, recorded.uplinks)


def _addresses(names: Iterable[str], vms: Vms) -> set[str]:
    """Return the addresses of those of these VMs that are among ``vms``."""
    return {vms[name][key] for name in names if name in vms for key in ("address", "address6") if key in vms[name]}


def _by_vm(names: Iterable[str], vms: Vms) -> dict[str, set[Element]]:
    """Return the elements of each of these VMs, none for one that is not among ``vms``."""
    return {name: of_vm(parse(vms[name])) if name in vms else set() for name in names}


# ---- What is there ----


def _live(runner: Runner, objects: Sequence[Json], had: set[Element], own: set[Element], *, whole: bool) -> _Live:
    """Return what the kernel has of the firewall.

    To list elements takes the longer the more VMs there are. To have the kernel say whether exactly those on record could
    be deleted, and those that are asked for could be created then, does not.
    """
    families, intact = rules.families(objects), rules.intact(objects)
    if intact and not whole and nft.possible(runner, exactly(had, own)):
        return _Live(had, bool(families), intact, all_elements=False)
    tables = [nft.table(runner, family, TABLE) for family in families]
    return _Live(set().union(*map(listed, tables)), bool(families), intact, all_elements=True)


def _commands(live: _Live, target: set[Element], *, needed: bool) -> list[Json]:
    if not needed:
        return rules.removal() if live.there else []
    if not live.intact:
        return [*rules.base(), *changes(set(), target)]
    return changes(live.elements, target)


def _transact(runner: Runner, commands: Sequence[Json], *, check: bool = False) -> None:
    """Load all commands or none, or with ``check`` find out what the kernel says. Raises MicrovmError, naming what it needs.

    Whether a rule fits where it stands, the kernel says to the real load alone.
    """
    try:
        nft.transaction(runner, commands, check=check)
    except CommandFailed as error:
        versions = [runner.run(argv).stdout.strip() for argv in (["nft", "--version"], ["uname", "-r"])]
        raise MicrovmError(
            f"the firewall was not changed: {versions[0]}, with Linux {versions[1]}, refuses the rules; "
            "they need nft 1.0.6 and Linux 5.10, with the options NF_TABLES_INET, NF_TABLES_ARP, NFT_CT, NFT_FIB_INET, "
            f"NFT_LIMIT, NFT_MASQ and NFT_NAT: {error.message}"
        ) from error


def _outcome(had: set[Element], own: set[Element], live: _Live, *, other: bool, stale: bool) -> Outcome:
    """Tell what is done for a VM; ``other`` is whether other options are asked for than before."""
    added, removed = own - live.elements, (had - own) & live.elements
    actions = [f"added {len(added)} elements"] if added else []
    actions += [f"removed {len(removed)} elements"] if removed else []
    if own and not live.intact:
        actions.append("loaded the rules")
    if stale:
        actions.append("wrote the rules for the next boot" if own else "removed the rules for the next boot")
    return Outcome(
        changed=bool(actions) or other,
        facts={"state": "present" if own else "absent"},
        before={"elements": shown(had & live.elements)},
        after={"elements": shown(own)},
        actions=tuple(actions),
    )
