# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table of packets against the firewall as it is, and with each of its rules removed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import world
from lab import Lab
from packets import Seen
from packets import observe as send_all
from table import CASES

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import firewall, firewall_counters, nft
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.firewall_elements import (
    changes,
    of_uplinks,
    of_vm,
)
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.firewall_policy import parse
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.firewall_rules import base
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.nft_expressions import Json


@pytest.fixture(scope="module")
def state_dir(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state")
    report = firewall.ensure(world.VMS.values(), state_dir=path, runner=lab.runner)
    assert all(isinstance(outcome, Outcome) for outcome in report.outcomes.values()), report.outcomes
    return path


def observe(lab: Lab, state_dir: Path, rules: list[Json]) -> Observed:
    """Return what becomes of the table under these rules, with counts and limits anew and no connection going on."""
    elements = set().union(*(of_vm(parse(options)) for options in world.VMS.values()), of_uplinks([world.LINKS["out"]]))
    nft.transaction(lab.runner, [*rules, *changes(set(), elements)])
    lab.forget_connections()
    list(lab.received())
    seen = send_all(lab, CASES)
    told = firewall_counters.gather(None, state_dir=state_dir, runner=lab.runner)
    dropped = {
        name: {reason: count["packets"] for reason, count in outcome.facts["dropped"].items() if count["packets"]}
        for name, outcome in told.items()
        if isinstance(outcome, Outcome)
    }
    return Observed(seen, dropped)


@pytest.fixture(scope="module")
def whole(lab: Lab, state_dir: Path) -> Observed:
    return observe(lab, state_dir, base())


@dataclass(frozen=True)
class Observed:
    """Where each packet came out, and how many were dropped by VM and reason."""

    seen: list[frozenset[Seen]]
    dropped: dict[str, dict[str, int]]


def test_each_packet_comes_out_where_it_should_and_nowhere_else(whole: Observed) -> None:
    steps = [(case, number, made) for case in CASES for number, made in enumerate(case.steps)]
    wrong = [
        f"{case.why} (packet {number}, from {made.sender}): {set(seen) or 'nowhere'}, not {set(made.seen) or 'nowhere'}"
        for (case, number, made), seen in zip(steps, whole.seen, strict=True)
        if seen != made.seen
    ]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(steps)}", *wrong])


RULES = [(number, command["add"]["rule"]) for number, command in enumerate(base()) if "rule" in command.get("add", {})]
# nft itself wants one of the conditions: a port can only be changed where there is one.
CONDITIONS = [
    (number, position, rule)
    for number, rule in RULES
    for position, part in enumerate(rule["expr"])
    if "match" in part and not (position == 0 and rule["chain"] in ("forwards", "local_forwards"))
]


@pytest.mark.parametrize(
    "number", [pytest.param(number, id=f"{rule['chain']}: {rule['comment']}") for number, rule in RULES]
)
def test_each_rule_matters(lab: Lab, state_dir: Path, whole: Observed, number: int) -> None:
    commands = base()
    assert observe(lab, state_dir, commands[:number] + commands[number + 1 :]) != whole


@pytest.mark.parametrize(
    ("number", "position"),
    [
        pytest.param(number, position, id=f"{rule['chain']}: {rule['comment']}, {position}")
        for number, position, rule in CONDITIONS
    ],
)
def test_each_condition_matters(lab: Lab, state_dir: Path, whole: Observed, number: int, position: int) -> None:
    commands = copy.deepcopy(base())
    del commands[number]["add"]["rule"]["expr"][position]
    assert observe(lab, state_dir, commands) != whole
