# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the firewall has counted for each VM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import firewall_rules as rules
from . import firewall_store as store
from . import nft
from .bulk import Outcome
from .errors import MicrovmError
from .firewall_elements import listed, of_vm
from .firewall_policy import parse
from .firewall_sets import REASONS, TABLE
from .nft_expressions import Json
from .runner import Runner

_DROPPED = "dropped_"
_NONE = {"packets": 0, "bytes": 0}


def gather(names: Sequence[str] | None, *, state_dir: Path, runner: Runner) -> dict[str, Outcome | MicrovmError]:
    """Return what is known of each VM, of all on record where none is named: its rules, its policy, its counts.

    Raises MicrovmError where nft fails. A VM that is not known is absent.
    """
    recorded = store.read(state_dir / "nftables")
    objects = nft.rules(runner)
    listing = [shown for family in rules.families(objects) for shown in nft.table(runner, family, TABLE, counts=True)]
    elements, intact, counts = listed(listing), rules.intact(objects), counted(listing)
    outcomes: dict[str, Outcome | MicrovmError] = {}
    for name in recorded.vms if names is None else names:
        options = recorded.vms.get(name)
        if options is None:
            outcomes[name] = Outcome(False, {"state": "absent"})
            continue
        # Without its rules or one of its elements it is not what was asked for.
        state = "present" if intact and of_vm(parse(options)) <= elements else "broken"
        outcomes[name] = Outcome(False, {"state": state, "policy": options, **of_tap(options["tap"], counts)})
    return outcomes


Counts = dict[tuple[str, str], dict[str, int]]


def counted(objects: Iterable[Json]) -> Counts:
    """Return packets and bytes by set and TAP, of all families together, from what nft lists with its counts. Pure."""
    counts: Counts = {}
    for shown in objects:
        body: Json = shown.get("set") or {}
        for element in body.get("elem", ()):
            counter = element["elem"].get("counter") if isinstance(element, dict) and "elem" in element else None
            if counter is None:
                continue
            key = element["elem"]["val"]
            tap = key["concat"][0] if isinstance(key, dict) else key
            # What is sent and received is counted by address family.
            total = counts.setdefault((body["name"].rstrip("46"), tap), dict(_NONE))
            for unit in total:
                total[unit] += counter[unit]
    return counts


def of_tap(tap: str, counts: Counts) -> dict[str, Any]:
    """Return what the VM behind a TAP has sent and received, and what was dropped and why. Pure."""
    return {
        "sent": counts.get(("sources", tap), _NONE),
        "received": counts.get(("targets", tap), _NONE),
        "dropped": {reason: counts.get((f"{_DROPPED}{reason}", tap), _NONE) for reason in REASONS},
    }
