# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VM names: they become file names, unit names and host names, so they are checked once, here."""

from __future__ import annotations

import re

from .errors import MicrovmError

# A host name label (RFC 1123, section 2.1), so that a VM's name can be its guest's host name; lower case, since
# host names are compared without case and file names are not.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def check_vm_name(name: str) -> str:
    """Return ``name``; raise MicrovmError where it is not a lower-case host name label of 1 to 63 characters."""
    if not _NAME.fullmatch(name):
        raise MicrovmError(
            f"{name!r} is not a VM name: use 1 to 63 of the characters a-z, 0-9 and '-', "
            "with a letter or digit first and last",
            option="name",
        )
    return name
