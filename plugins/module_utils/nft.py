# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""nft, with JSON in and out (libnftables-json(5))."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import CommandFailed
from .nft_expressions import Json
from .runner import Runner


def transaction(runner: Runner, commands: Iterable[Json], *, check: bool = False) -> None:
    """Load all commands, or none. With ``check``, the kernel only says whether it could. Raises CommandFailed."""
    argv = ["nft", "--json", *(["--check"] if check else []), "--file", "-"]
    done = runner.run(argv, stdin=json.dumps({"nftables": list(commands)}), check=False)
    if done.returncode != 0:
        # It says the same of each element.
        said = "; ".join(dict.fromkeys(line for line in done.stderr.splitlines() if line))
        raise CommandFailed(f"the command '{' '.join(argv)}' failed with exit status {done.returncode}: {said}")


def possible(runner: Runner, commands: Iterable[Json]) -> bool:
    """Return whether the kernel could load all commands as things are now."""
    try:
        transaction(runner, commands, check=True)
    except CommandFailed:
        return False
    return True


def table(runner: Runner, family: str, name: str, *, counts: bool = False) -> list[Json]:
    """Return the objects and elements of a table that is there. Raises CommandFailed."""
    return _listed(runner, "table", family, name, flags=[] if counts else ["--stateless"])


def rules(runner: Runner) -> list[Json]:
    """Return all tables, chains, rules and objects, and all sets without their elements. Raises CommandFailed.

    Of all that nft 1.0 lists, this alone takes no longer for a table whose sets are large.
    """
    return _listed(runner, "ruleset", flags=["--stateless", "--terse"])


def text(runner: Runner, family: str, name: str) -> str:
    """Return a table in nft's own language, without elements and counts, as ``nft --file`` reads it. Raises CommandFailed."""
    return runner.run(["nft", "--stateless", "--terse", "list", "table", family, name]).stdout


def _listed(runner: Runner, *what: str, flags: Iterable[str]) -> list[Json]:
    shown: Mapping[str, Any] = json.loads(runner.run(["nft", "--json", *flags, "list", *what]).stdout or "{}")
    return list(shown.get("nftables", ()))
