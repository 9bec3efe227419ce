# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""nft, with JSON in and out (libnftables-json(5))."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import CommandFailed, MicrovmError
from .runner import Runner

Json = dict[str, Any]


def transaction(runner: Runner, commands: Iterable[Json], *, check: bool = False) -> None:
    """Load all commands, or none. With ``check``, only find out whether they could be. Raises MicrovmError."""
    argv = ["nft", "--json", *(["--check"] if check else []), "--file", "-"]
    try:
        runner.run(argv, stdin=json.dumps({"nftables": list(commands)}))
    except CommandFailed as error:
        raise MicrovmError(f"the firewall was not changed: {error.message}") from error


def table(runner: Runner, family: str, name: str) -> list[Json]:
    """Return the objects of a table, empty where there is none. Raises CommandFailed."""
    if not any(
        shown.get("table", {}).get("family") == family and shown["table"]["name"] == name
        for shown in _listed(runner, "tables")
    ):
        return []
    return _listed(runner, "table", family, name)


def chains(runner: Runner) -> list[Json]:
    """Return all chains of all tables. Raises CommandFailed."""
    return [shown["chain"] for shown in _listed(runner, "chains") if "chain" in shown]


def text(runner: Runner, family: str, name: str) -> str:
    """Return a table in nft's own language, without counts, as ``nft --file`` reads it. Raises CommandFailed."""
    return runner.run(["nft", "--stateless", "list", "table", family, name]).stdout


def _listed(runner: Runner, *what: str) -> list[Json]:
    shown: Mapping[str, Any] = json.loads(runner.run(["nft", "--json", "--stateless", "list", *what]).stdout or "{}")
    return list(shown.get("nftables", ()))
