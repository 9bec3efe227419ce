# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""That a VM is on its way between two hosts: ``moving.json`` in its directory, on both, until it is known where it is.

As long as it is there no one starts the VM, not even its unit: it might run on the other host.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from .errors import MicrovmError
from .files import write_json
from .vm_paths import Paths


@dataclass(frozen=True, slots=True)
class Move:
    """Which way the VM goes, the other host, and whether the guest is to run there, or here again.

    ``backing`` are the files that the images of a VM which comes may be based on.
    """

    way: Literal["to", "from"]
    host: str
    runs: bool = True
    backing: tuple[str, ...] = ()


def path(paths: Paths) -> Path:
    """Return the file that it is noted in."""
    return paths.state / "moving.json"


def read(paths: Paths) -> Move | None:
    """Return what is noted; None for a VM that is not being moved."""
    try:
        noted = json.loads(path(paths).read_bytes())
        return Move(**{**noted, "backing": tuple(noted.get("backing", ()))})
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(paths: Paths, move: Move) -> None:
    """Note a move."""
    write_json(path(paths), asdict(move))


def clear(paths: Paths) -> None:
    """Note that it is over."""
    path(paths).unlink(missing_ok=True)


def require_settled(paths: Paths) -> None:
    """Raise MicrovmError for a VM that is being moved."""
    move = read(paths)
    if move is not None:
        raise MicrovmError(
            f"the VM is being moved {move.way} the host '{move.host}', and may run there; run the migration again to have "
            "it in one place, or, if you are sure that it is not there, ch_migrate with state=stayed",
            option="state",
            vm=paths.name,
        )
