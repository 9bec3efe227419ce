# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import fat_names
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "A"], "both 'a' and 'A' in the directory 'keys': they differ only in case"),
        (["é", "É"], "they differ only in case"),
        ([""], "it is empty, or ends in a dot or a space"),
        (["."], "ends in a dot"),
        ([".."], "ends in a dot"),
        (["a."], "'keys/a.'.*ends in a dot"),
        (["a "], "ends in a dot or a space"),
        (["a:b"], "it has the forbidden ':'"),
        (["a/b"], "it has the forbidden '/'"),
        (["a\nb"], r"it has the forbidden '\\n'"),
        (["x" * 256], "it has 256 UTF-16 units, and 255 is the most"),
        (["😀" * 128], "it has 256 UTF-16 units"),
        (["\udcff"], "is not Unicode"),
    ],
)
def test_what_fat_cannot_hold_is_named(names: list[str], message: str) -> None:
    with pytest.raises(MicrovmError, match=message):
        fat_names.check_names(names, directory="keys")


def test_what_fat_can_hold() -> None:
    fat_names.check_names(["a", "b", "x" * 255, "😀" * 127, ".hidden", "a b", "CON", "straße", "STRASSE"], directory="")


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("README.TXT", b"README  TXT"),
        ("service", b"SERVICE    "),
        ("longer name.pem", b"LONGER~1PEM"),
        ("archive.tar.gz", b"ARCHIV~1GZ "),
        (".profile", b"PROFIL~1   "),
        ("a+b", b"A_B~1      "),
        ("é", b"_~1        "),
        ("x.conf", b"X~1     CON"),
    ],
)
def test_aliases(name: str, alias: bytes) -> None:
    assert fat_names.short_names([name])[name] == alias


def test_an_alias_is_no_other_files_name() -> None:
    aliases = fat_names.short_names(["abcdefghi", "ABCDEF~1", "abcdefghij"])
    assert aliases == {"abcdefghi": b"ABCDEF~2   ", "ABCDEF~1": b"ABCDEF~1   ", "abcdefghij": b"ABCDEF~3   "}


def test_ten_thousand_alike_names_have_an_alias_each() -> None:
    aliases = fat_names.short_names([f"certificate-{number}.pem" for number in range(10_000)])
    assert len(set(aliases.values())) == 10_000


# The example of the specification, section "FAT Long Directory Entries": "The quick brown.fox".
def test_long_entries_of_the_specifications_example() -> None:
    alias = b"THEQUI~1FOX"
    entries = fat_names.long_entries("The quick brown.fox", alias)
    last, first = entries[:32], entries[32:]
    assert (last[0], first[0]) == (0x42, 0x01)
    assert (last[11], last[12], last[26:28]) == (0x0F, 0, b"\0\0")
    assert first[1:11] + first[14:26] + first[28:32] == "The quick bro".encode("utf-16-le")
    assert last[1:11] + last[14:26] + last[28:32] == "wn.fox".encode("utf-16-le") + b"\0\0" + b"\xff" * 12
    assert last[13] == first[13] == fat_names.checksum(alias)


def test_checksum_is_the_specifications_sum() -> None:
    # Rotate right by one, add the byte, eleven times, by hand for an alias of one letter.
    expected = 0
    for byte in b"A          ":
        expected = (((expected & 1) << 7 | expected >> 1) + byte) % 256
    assert fat_names.checksum(b"A          ") == expected


def test_a_name_of_whole_entries_is_not_padded() -> None:
    assert b"\xff\xff" not in fat_names.long_entries("thirteen char", b"THIRTE~1   ")


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), unique_by=fat_names.fold, max_size=30))
def test_aliases_are_unique_and_short(names: list[str]) -> None:
    aliases = fat_names.short_names(names)
    assert len(set(aliases.values())) == len(names)
    assert all(len(alias) == 11 and alias[:1] != b" " for alias in aliases.values())
