# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names in a FAT directory: which are possible, their short aliases, and the entries that hold them. Pure.

Facts from Microsoft's FAT32 File System Specification, version 1.03 ("fatgen103"), sections "FAT Directory Structure"
and "FAT Long Directory Entries".
"""

from __future__ import annotations

import string
import struct
from collections.abc import Iterable

from .errors import MicrovmError

ENTRY_SIZE = 32
MAX_NAME_UNITS = 255
_LONG_NAME = 0x0F
_LAST_LONG_ENTRY = 0x40
_UNITS_PER_ENTRY = 13
_FORBIDDEN = frozenset('"*/:<>?\\|').union(map(chr, range(0x20)), "\x7f")
_SHORT = frozenset(string.ascii_uppercase + string.digits + "$%'-_@~`!(){}^#&")


def fold(name: str) -> str:
    """Return what two names share that FAT takes for the same: case is folded one character at a time."""
    return "".join(upper if len(upper := character.upper()) == 1 else character for character in name)


def check_names(names: Iterable[str], *, directory: str) -> None:
    """Raise MicrovmError for the first name that FAT cannot hold, and for two that differ only in case.

    ``directory`` is the path that messages name.
    """
    seen: dict[str, str] = {}
    for name in names:
        path = f"{directory}/{name}" if directory else name
        try:
            units = len(name.encode("utf-16-le")) // 2
        except UnicodeEncodeError as error:
            raise MicrovmError(f"the name of {path!r} is not Unicode, and FAT32 holds only that; rename it") from error
        forbidden = sorted(_FORBIDDEN.intersection(name))
        if not name or name in (".", "..") or name[-1] in ". ":
            raise MicrovmError(f"FAT32 cannot hold the name of {path!r}: it is empty, or ends in a dot or a space")
        if forbidden:
            raise MicrovmError(
                f"FAT32 cannot hold the name of {path!r}: it has the forbidden {', '.join(map(repr, forbidden))}"
            )
        if units > MAX_NAME_UNITS:
            raise MicrovmError(
                f"FAT32 cannot hold the name of {path!r}: it has {units} UTF-16 units, and {MAX_NAME_UNITS} is the most"
            )
        other = seen.setdefault(fold(name), name)
        if other is not name:
            raise MicrovmError(
                f"FAT32 cannot hold both {other!r} and {name!r} in the directory {directory or '/'!r}: they differ "
                "only in case; rename one"
            )


def short_names(names: Iterable[str]) -> dict[str, bytes]:
    """Return the 11-byte alias of each of a directory's names.

    A name that is a short one but for its case is its own alias; any other gets a numeric tail. No alias is another
    file's long name or alias.
    """
    names = list(names)
    owners = {fold(name): name for name in names}
    taken: set[str] = set()
    tails: dict[tuple[str, str], int] = {}
    aliases: dict[str, bytes] = {}
    for name in names:
        base, extension, lossy = _basis(name)
        alias = f"{base}.{extension}" if extension else base
        if lossy or alias in taken or owners.get(alias, name) != name:
            number = tails.get((base, extension), 0)
            while True:
                number += 1
                tail = f"~{number}"
                stem = base[: 8 - len(tail)] + tail
                alias = f"{stem}.{extension}" if extension else stem
                if alias not in taken and owners.get(alias, name) == name:
                    break
            tails[base, extension] = number
            base = stem
        taken.add(alias)
        aliases[name] = f"{base:<8}{extension:<3}".encode("ascii")
    return aliases


def _basis(name: str) -> tuple[str, str, bool]:
    """Return the basis-name, its extension, and whether either lost something of the long name but its case."""
    stripped = name.replace(" ", "").lstrip(".")
    base, dot, extension = stripped.rpartition(".")
    if not dot:
        base, extension = extension, ""
    base, extension = fold(base.replace(".", "")), fold(extension)
    allowed_base = "".join(character if character in _SHORT else "_" for character in base)
    allowed_extension = "".join(character if character in _SHORT else "_" for character in extension)
    short = (allowed_base[:8] or "_", allowed_extension[:3])
    whole = f"{short[0]}.{short[1]}" if short[1] else short[0]
    return *short, whole != fold(name)


def is_short(name: str, alias: bytes) -> bool:
    """Return whether the alias says all of the name, so that no long entries are needed."""
    base, extension = alias[:8].rstrip().decode(), alias[8:].rstrip().decode()
    return name == (f"{base}.{extension}" if extension else base)


def checksum(alias: bytes) -> int:
    """Return the checksum that ties long entries to the alias (specification, "ChkSum")."""
    value = 0
    for byte in alias:
        value = ((value >> 1) + ((value & 1) << 7) + byte) & 0xFF
    return value


def long_entries(name: str, alias: bytes) -> bytes:
    """Return the entries that hold a long name, in the order in which they precede the short one."""
    units = name.encode("utf-16-le")
    count = -(-len(units) // (2 * _UNITS_PER_ENTRY))
    # A name that does not fill its last entry is ended by 0x0000 and padded with 0xFFFF.
    padded = units.ljust(2 * _UNITS_PER_ENTRY * count, b"\xff")
    if len(units) < len(padded):
        padded = units + b"\0\0" + padded[len(units) + 2 :]
    entries = []
    for index in range(count):
        part = padded[26 * index : 26 * (index + 1)]
        order = index + 1 | (_LAST_LONG_ENTRY if index == count - 1 else 0)
        fields = (order, part[:10], _LONG_NAME, 0, checksum(alias), part[10:22], 0, part[22:])
        entries.append(struct.pack("<B10sBBB12sH4s", *fields))
    return b"".join(reversed(entries))


def entry_count(name: str, alias: bytes) -> int:
    """Return how many entries a name takes in its directory."""
    if is_short(name, alias):
        return 1
    return 1 + -(-len(name.encode("utf-16-le")) // (2 * _UNITS_PER_ENTRY))
