# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sets of ports as ranges, first and last. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import MicrovmError

Ports = tuple[int, int]
ALL_PORTS: Ports = (0, 65535)


def parse_ports(text: object, *, option: str) -> Ports:
    """Read a port, 1 to 65535, or a range such as 8000-8010. Raises MicrovmError, naming ``option``."""
    first, dash, last = str(text).partition("-")
    try:
        ports = (int(first), int(last) if dash else int(first))
    except ValueError:
        ports = (0, 0)
    if not 1 <= ports[0] <= ports[1] <= 65535:
        raise MicrovmError(f"{text!r} is neither a port, 1 to 65535, nor a range such as 8000-8010", option=option)
    return ports


def merged(ranges: Iterable[Ports]) -> list[Ports]:
    """Return the same ports in as few ranges as there can be, in order."""
    found: list[Ports] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def without(ranges: Iterable[Ports], taken: Iterable[Ports]) -> list[Ports]:
    """Return the ports of ``ranges`` that are not in ``taken``, in as few ranges as there can be."""
    left = merged(ranges)
    for first, last in taken:
        left = [
            part
            for low, high in left
            for part in ((low, min(high, first - 1)), (max(low, last + 1), high))
            if part[0] <= part[1]
        ]
    return merged(left)
