# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The record of what a VM's disks were made of: ``disks.json`` in its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import MicrovmError
from .files import write_json

NAME = "disks.json"


def read(directory: Path) -> dict[str, Any]:
    """Return what is on record, an empty one where there is none. Raises MicrovmError for a record that is damaged."""
    path = directory / NAME
    try:
        return dict(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise MicrovmError(f"'{path}' is not JSON ({error}); remove it to have the disks built anew") from error


def write(directory: Path, record: Mapping[str, Any]) -> None:
    """Replace the record."""
    write_json(directory / NAME, record)
