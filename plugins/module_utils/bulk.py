# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Many VMs in one call: what is asked of each, the work on all of them, and one report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .errors import MicrovmError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done, or in check mode would be done, for one VM.

    ``facts`` are what the next step needs; ``before`` and ``after`` are what diff mode shows; ``actions`` say in
    words, in order, what was changed.
    """

    changed: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    actions: tuple[str, ...] = ()


def requested(params: Mapping[str, Any], *, shared: Iterable[str] = (), key: str = "vms") -> list[dict[str, Any]]:
    """Return the options of each VM that a call asks for, in order, each with its defaults filled in.

    ``params`` are a module's parameters: either one VM's options, or ``vms`` with one set of options an item, for
    which the options given beside it are the defaults. Options named in ``shared`` belong to the call and not to a
    VM; they are left out. An option that is None counts as not given. Raises MicrovmError where neither a name nor
    a list is given, where both are, or where a name is missing or comes twice.
    """
    left_out = {key, *shared}
    beside = {option: value for option, value in params.items() if option not in left_out}
    if params.get(key) is None:
        if beside.get("name") is None:
            raise MicrovmError(f"give either 'name' or '{key}'", option="name")
        return [beside]
    if beside.get("name") is not None:
        raise MicrovmError(
            f"'name' and '{key}' exclude each other; put the name into the items of '{key}'", option="name"
        )
    items = []
    seen: set[str] = set()
    for position, item in enumerate(params[key]):
        name = item.get("name")
        if not name:
            raise MicrovmError(f"item {position} has no 'name'", option=key)
        if name in seen:
            raise MicrovmError("the name stands twice in the list; each VM can be asked for once", option=key, vm=name)
        seen.add(name)
        items.append({**beside, **{option: value for option, value in item.items() if value is not None}})
    return items


def run_each(
    items: Iterable[Mapping[str, Any]], work: Callable[[Mapping[str, Any]], Outcome], *, workers: int = 8
) -> dict[str, Outcome | MicrovmError]:
    """Call ``work`` on each VM's options, at most ``workers`` at a time, and return the outcomes by VM name.

    A VM whose work raises MicrovmError, or to which the system refuses something, such as a full disk, does not stop the others:
    its outcome is the error. Any other exception is a defect and is raised once all have ended.
    """

    def guarded(item: Mapping[str, Any]) -> Outcome | MicrovmError:
        try:
            return work(item)
        except MicrovmError as error:
            return error.for_vm(str(item["name"]))
        except OSError as error:
            return MicrovmError(f"the system refused something: {error}").for_vm(str(item["name"]))

    todo = list(items)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        outcomes = list(pool.map(guarded, todo))
    return {str(item["name"]): outcome for item, outcome in zip(todo, outcomes, strict=True)}


def report(outcomes: Mapping[str, Outcome | MicrovmError], *, key: str = "vms") -> dict[str, Any]:
    """Return what a module exits with: ``changed``, ``diff`` and the facts of each VM under ``key``, by its name.

    Where a VM failed, ``failed`` is true, ``msg`` names each failure, and the failed VM's entry holds ``failed`` and
    ``msg`` instead of facts; the others' entries say what they reached. Ansible takes a result for a failure by its
    ``failed``, so that ``exit_json`` is right for both (Return Values, "failed").
    """
    entries: dict[str, Any] = {}
    diffs = []
    for name, outcome in outcomes.items():
        if isinstance(outcome, MicrovmError):
            entries[name] = {"changed": False, "failed": True, "msg": str(outcome)}
            continue
        entries[name] = {"changed": outcome.changed, "actions": list(outcome.actions), **outcome.facts}
        if outcome.changed and (outcome.before is not None or outcome.after is not None):
            diffs.append(
                {
                    "before_header": name,
                    "after_header": name,
                    "before": dict(outcome.before or {}),
                    "after": dict(outcome.after or {}),
                }
            )
    result: dict[str, Any] = {
        "changed": any(entry["changed"] for entry in entries.values()),
        "diff": diffs,
        key: entries,
    }
    failures = [entry["msg"] for entry in entries.values() if entry.get("failed")]
    if failures:
        result["failed"] = True
        result["msg"] = f"{len(failures)} of {len(entries)} failed: " + "; ".join(failures)
    return result
