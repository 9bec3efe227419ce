# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Checksums as options give them, and the files that publishers list them in. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import MicrovmError

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
# coreutils: "HEX  name", "HEX *name", with a backslash in front where the name is escaped.
_GNU = re.compile(r"\\?([0-9a-fA-F]{64}) [ *](.+)")
# BSD, and coreutils with --tag
_BSD = re.compile(r"SHA256 \((.+)\) = ([0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True)
class Checksum:
    """A SHA-256 digest, or where a list with it is."""

    sha256: str | None
    listed_at: str | None


def parse(text: str, *, option: str) -> Checksum:
    """Read ``sha256:HEX`` or ``sha256:URL-or-path``, as ansible.builtin.get_url does. Raises MicrovmError."""
    algorithm, colon, value = text.partition(":")
    if not colon or algorithm != "sha256" or not value:
        raise MicrovmError(
            f"{text!r} is not a checksum: write sha256: and then the 64 hexadecimal digits, or the URL of a SHA256SUMS",
            option=option,
        )
    if _SHA256.fullmatch(value):
        return Checksum(value.lower(), None)
    if "/" not in value:
        raise MicrovmError(f"{value!r} is neither 64 hexadecimal digits nor a URL or path", option=option)
    return Checksum(None, value)


def listed(sums: str, name: str) -> str | None:
    """Return the digest of the file ``name`` in the text of a SHA256SUMS file, or None where it is not listed."""
    for line in sums.splitlines():
        if match := _GNU.fullmatch(line.strip()):
            digest, found = match[1], match[2]
        elif match := _BSD.fullmatch(line.strip()):
            found, digest = match[1], match[2]
        else:
            continue
        if found.removeprefix("./") == name:
            return digest.lower()
    return None
