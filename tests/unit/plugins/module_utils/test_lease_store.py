# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import lease_store
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import Completed


class EmptyHost:
    """A host without addresses or routes."""

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        return Completed(0, "[]\n[]\n", "")


def ensure(state_dir: Path, *items: dict[str, Any], check_mode: bool = False) -> dict[str, Outcome | MicrovmError]:
    return lease_store.ensure(items, state_dir=state_dir, runner=EmptyHost(), check_mode=check_mode)


def facts(outcome: Outcome | MicrovmError) -> Any:
    assert isinstance(outcome, Outcome)
    return outcome.facts


def test_life_of_a_lease(tmp_path: Path) -> None:
    first = ensure(tmp_path, {"name": "web"})["web"]
    assert isinstance(first, Outcome)
    assert first.changed
    assert first.facts["address"] == "10.213.0.2"
    assert stat.S_IMODE((tmp_path / "leases.db").stat().st_mode) == 0o600

    again = ensure(tmp_path, {"name": "web"})["web"]
    assert again == Outcome(changed=False, facts=first.facts)

    gone = ensure(tmp_path, {"name": "web", "state": "absent"})["web"]
    assert isinstance(gone, Outcome)
    assert (gone.changed, gone.facts) == (True, {})
    assert ensure(tmp_path, {"name": "web", "state": "absent"})["web"] == Outcome(changed=False)


def test_check_mode_answers_what_the_run_does_and_writes_nothing(tmp_path: Path) -> None:
    asked = ensure(tmp_path / "new", {"name": "a"}, {"name": "b"}, check_mode=True)
    assert not (tmp_path / "new").exists()
    assert ensure(tmp_path / "new", {"name": "a"}, {"name": "b"}) == asked

    released = ensure(tmp_path / "new", {"name": "a", "state": "absent"}, check_mode=True)
    assert set(lease_store.read(tmp_path / "new/leases.db")) == {"a", "b"}
    assert ensure(tmp_path / "new", {"name": "a", "state": "absent"}) == released


def test_a_bad_option_of_one_vm_does_not_stop_the_others(tmp_path: Path) -> None:
    outcomes = ensure(tmp_path, {"name": "a", "address": "nonsense"}, {"name": "b"}, {"name": "C"})
    assert str(outcomes["a"]) == "VM 'a', option 'address': 'nonsense' is not an IPv4 address such as 10.213.0.2"
    assert "is not a VM name" in str(outcomes["C"])
    assert facts(outcomes["b"])["address"] == "10.213.0.2"


def _lease_one_by_one(state_dir: Path, worker: int) -> list[str]:
    return [facts(ensure(state_dir, {"name": f"w{worker}-{n}"})[f"w{worker}-{n}"])["subnet"] for n in range(20)]


def test_runs_at_the_same_time_never_hand_out_the_same(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(6) as pool:
        leased = pool.starmap(_lease_one_by_one, [(tmp_path, worker) for worker in range(6)])
    subnets = [subnet for lot in leased for subnet in lot]
    assert len(subnets) == len(set(subnets)) == 120


def test_a_run_that_is_killed_leaves_all_or_nothing(tmp_path: Path) -> None:
    ensure(tmp_path, {"name": "before"})
    code = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from pathlib import Path
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import lease_store
from {__name__} import EmptyHost
def slowly(database, leases):
    for lease in leases:
        original(database, [lease])
        print(lease.name, flush=True)
        time.sleep(0.05)
original, lease_store._insert = lease_store._insert, slowly
lease_store.ensure([{{"name": f"vm{{n}}"}} for n in range(100)], state_dir=Path({str(tmp_path)!r}), runner=EmptyHost())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"vm0\n"
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    assert set(lease_store.read(tmp_path / "leases.db")) == {"before"}
    assert facts(ensure(tmp_path, {"name": "after"})["after"])["address"] == "10.213.0.6"


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "leases.db") as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(MicrovmError, match="has the version 99, and this collection knows 1"):
        ensure(tmp_path, {"name": "web"})


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "leases.db").write_bytes(b"not a database" * 100)
    with pytest.raises(MicrovmError, match=r"leases.db cannot be used: file is not a database; nothing was changed"):
        ensure(tmp_path, {"name": "web"})


def test_a_lease_moves_to_another_host_as_it_is(tmp_path: Path) -> None:
    brought = dict(facts(ensure(tmp_path / "one", {"name": "web", "pool6": {"cidr": "fd12::/64"}})["web"]))
    other = {"name": "web", "lease": {**brought, "changed": True}}
    assert facts(ensure(tmp_path / "two", other, check_mode=True)["web"]) == brought
    moved = ensure(tmp_path / "two", other)["web"]
    assert isinstance(moved, Outcome)
    assert (moved.changed, moved.facts) == (True, brought)
    assert ensure(tmp_path / "two", other)["web"] == Outcome(changed=False, facts=brought)
    # What is leased afterwards keeps clear of it.
    after = facts(ensure(tmp_path / "two", {"name": "db"})["db"])
    assert not {after[key] for key in ("subnet", "mac", "tap", "cid")} & set(brought.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"the subnet 10\.213\.0\.0/30 overlaps 10\.213\.0\.0/30, leased by VM 'db'"),
        ({"subnet": "10.9.0.0/30", "address": "10.9.0.2", "host_address": "10.9.0.1"}, "is the MAC of VM 'db'"),
        (
            {"subnet": "10.9.0.0/30", "address": "10.9.0.2", "host_address": "10.9.0.1", "mac": "02:63:00:00:00:09"},
            "the TAP chtap0 is taken on this host",
        ),
        ({"address": "10.9.0.2"}, r"10\.9\.0\.2 does not lie in 10\.213\.0\.0/30"),
        ({"mac": None}, "is no lease such as this module returns: it has no mac"),
    ],
)
def test_what_is_taken_on_the_other_host(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    brought = dict(facts(ensure(tmp_path / "one", {"name": "web"})["web"]))
    ensure(tmp_path / "two", {"name": "db"})
    outcome = ensure(tmp_path / "two", {"name": "web", "lease": {**brought, **changes}})["web"]
    assert isinstance(outcome, MicrovmError)
    assert re.search(f"VM 'web', option 'lease': .*{message}", str(outcome)), outcome


def test_another_lease_than_the_one_that_is_there(tmp_path: Path) -> None:
    brought = dict(facts(ensure(tmp_path, {"name": "web"})["web"]))
    outcome = ensure(tmp_path, {"name": "web", "lease": {**brought, "cid": 99}})["web"]
    assert "VM 'web', option 'lease': has leased" in str(outcome)


def test_an_address_of_its_own_makes_all_else_its_own(tmp_path: Path) -> None:
    ensure(tmp_path / "one", {"name": "a"})
    asked = {"name": "web", "address": "10.213.0.6"}
    one = facts(ensure(tmp_path / "one", asked)["web"])
    assert one == facts(ensure(tmp_path / "two", asked)["web"])
    assert (one["tap"], one["cid"]) == ("chtap6", 0x0AD50006)
    # Where a name is taken, another one does.
    ensure(tmp_path / "three", *({"name": f"v{number}"} for number in range(8)))
    assert facts(ensure(tmp_path / "three", {**asked, "address": "10.213.9.6"})["web"])["tap"] == "chtap2310"
