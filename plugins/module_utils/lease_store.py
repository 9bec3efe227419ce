# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Leases, kept in SQLite: its transactions keep parallel runs apart, its unique columns are the last word."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from .bulk import Outcome
from .errors import MicrovmError
from .host_network import in_use
from .lease_plan import Lease, Request, parse_request, plan
from .runner import Runner

# Kept in the file's user_version. A change of the schema is a new number and a way to get there.
SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE leases (
    name TEXT PRIMARY KEY NOT NULL,
    address TEXT UNIQUE NOT NULL,
    host_address TEXT UNIQUE NOT NULL,
    prefix INTEGER NOT NULL,
    subnet TEXT UNIQUE NOT NULL,
    mac TEXT UNIQUE NOT NULL,
    tap TEXT UNIQUE NOT NULL,
    cid INTEGER UNIQUE NOT NULL,
    address6 TEXT UNIQUE,
    host_address6 TEXT UNIQUE,
    prefix6 INTEGER,
    subnet6 TEXT UNIQUE
) STRICT, WITHOUT ROWID
"""
# The names of our own fields are all that is ever put together into a statement.
_COLUMNS = ", ".join(column.name for column in fields(Lease))
_PLACES = ", ".join(["?"] * len(fields(Lease)))
# How long one run waits for another's transaction, in seconds.
_BUSY_SECONDS = 60.0


@contextmanager
def _open(path: Path, *, write: bool) -> Iterator[sqlite3.Connection]:
    """Yield the database within a transaction, which ends with the block: well, or as if it had never begun."""
    try:
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite would make the file with the mode that the umask leaves.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        where: Path | str = path if path.exists() else ":memory:"
        with closing(sqlite3.connect(where, timeout=_BUSY_SECONDS, isolation_level=None)) as database:
            # From IMMEDIATE on no other run can write: what was read stays true until COMMIT.
            database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                database.execute(_SCHEMA)
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise MicrovmError(
                    f"the lease database {path} has the version {version}, and this collection knows {SCHEMA_VERSION}; "
                    "use the collection's release that wrote it, or a newer one",
                    option="state_dir",
                )
            yield database
            database.execute("COMMIT" if write else "ROLLBACK")
    except (sqlite3.Error, OSError) as error:
        raise MicrovmError(
            f"the lease database {path} cannot be used: {error}; nothing was changed", option="state_dir"
        ) from error


def read(path: Path) -> dict[str, Lease]:
    """Return all leases by the VM's name. Raises MicrovmError for a database that cannot be read."""
    with _open(path, write=False) as database:
        return _all(database)


def _all(database: sqlite3.Connection) -> dict[str, Lease]:
    rows = database.execute(f"SELECT {_COLUMNS} FROM leases ORDER BY name")  # noqa: S608
    return {row[0]: Lease(*row) for row in rows}


def ensure(
    items: Iterable[Mapping[str, Any]], *, state_dir: Path, runner: Runner, check_mode: bool = False
) -> dict[str, Outcome | MicrovmError]:
    """Lease or release for each VM what its options say, in one transaction; return the outcomes by VM name.

    The address that a VM gets in check mode is the one that a run right after would give it. Raises MicrovmError where
    the database cannot be used; nothing has changed then.
    """
    outcomes: dict[str, Outcome | MicrovmError] = {}
    requests: list[Request] = []
    for item in items:
        outcomes[item["name"]] = Outcome(changed=False)
        try:
            requests.append(parse_request(item))
        except MicrovmError as error:
            outcomes[item["name"]] = error.for_vm(item["name"])
    with _open(state_dir / "leases.db", write=not check_mode) as database:
        leases = _all(database)
        host = in_use(runner, besides={lease.tap for lease in leases.values()})
        planned = plan(leases, requests, host)
        database.executemany("DELETE FROM leases WHERE name = ?", [(lease.name,) for lease in planned.removed])
        _insert(database, planned.added)
    changed = {lease.name for lease in (*planned.added, *planned.removed)}
    for name, result in planned.outcomes.items():
        outcomes[name] = (
            result if isinstance(result, MicrovmError) else _outcome(name, leases.get(name), result, changed)
        )
    return outcomes


def _insert(database: sqlite3.Connection, leases: Sequence[Lease]) -> None:
    statement = f"INSERT INTO leases ({_COLUMNS}) VALUES ({_PLACES})"  # noqa: S608
    database.executemany(statement, [astuple(lease) for lease in leases])


def _outcome(name: str, before: Lease | None, after: Lease | None, changed: set[str]) -> Outcome:
    if name not in changed:
        return Outcome(changed=False, facts={} if after is None else after.facts())
    return Outcome(
        changed=True,
        facts={} if after is None else after.facts(),
        before={} if before is None else before.facts(),
        after={} if after is None else after.facts(),
        actions=(f"leased {after.address}" if after else f"released {before.address if before else name}",),
    )
