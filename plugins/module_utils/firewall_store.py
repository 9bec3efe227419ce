# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The firewall on disk: what was asked of each VM, and what nftables.service loads at the host's next boot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import files, nft
from .errors import MicrovmError
from .firewall_elements import Element, in_words, of_uplinks
from .firewall_sets import ARP_FAMILY, FAMILY, TABLE
from .runner import Runner

# What was asked of each VM, so that one can be removed by its name, and all can be had back by whichever run comes next.
_RECORD = "firewall.json"
# The rules, which include the elements of each VM, a file each: a VM comes and goes without the others' being written.
_RULES = "cloud_hypervisor.nft"
_VMS = "vms"


@dataclass(slots=True)
class Record:
    """What was asked: the canonical options of each VM, by its name, the uplinks, and the one of them that was given."""

    vms: dict[str, Any] = field(default_factory=dict)
    uplinks: list[str] = field(default_factory=list)
    uplink: str | None = None


def read(directory: Path) -> Record:
    """Return the record, an empty one where there is none. Raises MicrovmError where it cannot be read."""
    path = directory / _RECORD
    try:
        recorded = json.loads(path.read_bytes())
        return Record(dict(recorded["vms"]), list(recorded["uplinks"]), recorded.get("uplink"))
    except FileNotFoundError:
        return Record()
    except (ValueError, KeyError, TypeError) as error:
        raise MicrovmError(
            f"'{path}' is not what was written ({error}); remove it and ask for all VMs again"
        ) from error


def on_disk(directory: Path) -> list[str]:
    """Return the VMs that have a file for the next boot."""
    return [path.stem for path in (directory / _VMS).glob("*.nft")]


def stale(directory: Path, elements: Mapping[str, set[Element]]) -> list[str]:
    """Return the VMs whose file for the next boot is not as it should be; that of a VM without elements should not be."""
    return [name for name, rows in elements.items() if _content(_path(directory, name)) != _wanted(rows)]


def write(
    directory: Path, record: Record, elements: Mapping[str, set[Element]], *, whole: bool, runner: Runner
) -> None:
    """Write the record, and for the next boot these VMs' elements and, with ``whole``, the rules that are loaded."""
    if not record.vms:
        for path in (*(directory / _VMS).glob("*"), directory / _RECORD, directory / _RULES):
            path.unlink(missing_ok=True)
        for made in (directory / _VMS, directory):
            if made.exists():
                made.rmdir()
        return
    (directory / _VMS).mkdir(exist_ok=True)

    def bring(name: str) -> None:
        if (wanted := _wanted(elements[name])) is None:
            _path(directory, name).unlink()
        else:
            files.write(_path(directory, name), wanted)

    # Each file waits for the disk; those that wait together wait once.
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(bring, stale(directory, elements)))
    if whole or not (directory / _RULES).exists():
        files.write(directory / _RULES, _rules(directory, record.uplinks, runner))
    body = json.dumps(asdict(record), sort_keys=True).encode()
    if _content(directory / _RECORD) != body:
        files.write(directory / _RECORD, body)


def _path(directory: Path, name: str) -> Path:
    return directory / _VMS / f"{name}.nft"


def _wanted(rows: set[Element]) -> bytes | None:
    return _lines(in_words(rows)) if rows else None


def _rules(directory: Path, uplinks: Iterable[str], runner: Runner) -> bytes:
    families = (FAMILY, ARP_FAMILY)
    # Adding first lets the deletion succeed where there is nothing.
    cleared = [f"{verb} table {family} {TABLE}" for family in families for verb in ("add", "delete")]
    tables = [nft.text(runner, family, TABLE) for family in families]
    return _lines([*cleared, *tables, *in_words(of_uplinks(uplinks)), f'include "{directory / _VMS}/*.nft"'])


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
