# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sizes as people write them."""

from __future__ import annotations

import re

from .errors import MicrovmError

_SIZE = re.compile(r"([0-9]+)\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)
_SHIFT = {"K": 10, "M": 20, "G": 30, "T": 40}


def parse_size(text: str | int, *, option: str) -> int:
    """Return the number of bytes of ``"20GiB"``, ``"512M"`` or ``1048576``.

    Units are powers of 1024 however they are spelled (``G``, ``GB``, ``GiB``), as in qemu-img and in Cloud
    Hypervisor's own command line. Raises MicrovmError, naming ``option``, for anything else.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise MicrovmError(
            f"{text!r} is not a size: write a whole number with a unit, such as 512MiB or 20GiB", option=option
        )
    return int(match[1]) << _SHIFT.get((match[2] or "").upper(), 0)
