# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the VMs of a fleet are to be, kept in a file on the controller: JSON, a host by each VM's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from . import files
from .errors import MicrovmError


def read(path: Path) -> dict[str, str]:
    """Return the hosts by the VMs' names; nothing where there is no file. Raises MicrovmError for another content."""
    try:
        placements = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise MicrovmError(f"'{path}' cannot be read: {error}", option="path") from error
    if not isinstance(placements, dict) or not all(isinstance(host, str) for host in placements.values()):
        raise MicrovmError(f"'{path}' does not hold one host's name by each VM's name", option="path")
    return placements


def write(path: Path, placements: Mapping[str, str]) -> None:
    """Write the file, for all who run Ansible here to read."""
    try:
        files.write(path, json.dumps(placements, indent=2, sort_keys=True).encode() + b"\n", mode=0o644)
    except OSError as error:
        raise MicrovmError(f"'{path}' cannot be written: {error}", option="path") from error
