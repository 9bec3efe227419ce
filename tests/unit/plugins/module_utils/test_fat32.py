# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import fat32
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.fat32 import File, Tree, build, read_tree, write


def image(tmp_path: Path, tree: Tree, **options: int) -> bytes:
    write(build(tree, label="SERVICEDISK", **options), tmp_path / "image")
    return (tmp_path / "image").read_bytes()


def test_boot_sector(tmp_path: Path) -> None:
    layout = build({"a": File.of(b"x")}, label="SERVICEDISK")
    data = image(tmp_path, {"a": File.of(b"x")})
    assert (data[510:512], data[82:90], data[71:82]) == (b"\x55\xaa", b"FAT32   ", b"SERVICEDISK")
    (sector, per_cluster, reserved, fats) = struct.unpack_from("<HBHB", data, 11)
    (sectors, fat_sectors) = struct.unpack_from("<II", data, 32)
    assert (sector, fats, sectors * 512) == (512, 2, len(data))
    clusters = (sectors - reserved - 2 * fat_sectors) // per_cluster
    assert 65_525 <= clusters <= (fat_sectors * 512 // 4) - 2
    assert data[:1024] == data[6 * 512 : 8 * 512]
    assert struct.unpack_from("<II", data, 512 + 488) == (clusters - 2, 4)
    assert data[layout.offset(3)] == ord("x")
    assert len(data) % fat32.MIB == 0


def test_both_fats_are_alike_and_chains_end(tmp_path: Path) -> None:
    tree = {"a": File.of(b"x" * 1025), "d": {"b": File.of(b"y")}, "empty": File.of(b"")}
    layout = build(tree, label="X")
    data = image(tmp_path, tree)
    start, size = layout.reserved_sectors * 512, layout.fat_sectors * 512
    first = data[start : start + size]
    assert first == data[start + size : start + 2 * size]
    end = 0x0FFFFFFF
    # root, d, then a of three clusters, then b
    assert struct.unpack_from("<9I", first) == (0x0FFFFFF8, end, end, end, 5, 6, end, end, 0)


def test_label_of_eleven_characters_stands_in_the_root_too(tmp_path: Path) -> None:
    layout = build({}, label="SERVICEDISK")
    root = image(tmp_path, {})[layout.offset(2) :]
    assert (root[:11], root[11]) == (b"SERVICEDISK", 0x08)


@pytest.mark.parametrize("label", ["", "lower", "TWELVECHARS1", "A.B", " A", "Ä"])
def test_labels_that_fat_does_not_have(label: str) -> None:
    with pytest.raises(MicrovmError, match="is not a FAT label"):
        build({}, label=label)


def test_the_same_tree_is_the_same_image(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    tree: Tree = {"a": File.of(b"x"), "f": File(tmp_path / "file", 7), "d": {}}
    first = image(tmp_path, tree)
    os.utime(tmp_path / "file", (0, 0))
    assert image(tmp_path, tree) == first
    assert image(tmp_path, {**tree, "a": File.of(b"y")}) != first


def test_what_is_not_written_is_a_hole(tmp_path: Path) -> None:
    image(tmp_path, {"a": File.of(b"x")}, free_bytes=1 << 30)
    status = (tmp_path / "image").stat()
    assert status.st_size > 1 << 30
    assert status.st_blocks * 512 < 1 << 20


def test_free_bytes_are_free() -> None:
    layout = build({}, label="X", free_bytes=100 << 20)
    (free, _next) = struct.unpack_from("<II", layout.info_sector, 488)
    assert free * layout.cluster_size >= 100 << 20


def test_timestamps(tmp_path: Path) -> None:
    # 2026-11-24 12:28:59 UTC, to two seconds
    root = image(tmp_path, {"A": File.of(b"")}, timestamp=1795523339)[build({}, label="X").offset(2) + 32 :]
    daytime, date = struct.unpack_from("<HH", root, 22)
    assert (date >> 9, date >> 5 & 15, date & 31) == (46, 11, 24)
    assert (daytime >> 11, daytime >> 5 & 63, daytime & 31) == (12, 28, 29)


@pytest.mark.parametrize("timestamp", [0, 315_532_799, 4_354_819_200])
def test_times_that_fat_does_not_know(timestamp: int) -> None:
    with pytest.raises(MicrovmError, match="1980 to 2107"):
        build({}, label="X", timestamp=timestamp)


def test_a_file_of_4_gib_is_refused_by_name() -> None:
    assert build({"big": File(Path("/x"), fat32.MAX_FILE_SIZE)}, label="X").cluster_size == 4096
    with pytest.raises(MicrovmError, match="the file 'd/big' has 4294967296 bytes, and FAT32 holds at most 4294967295"):
        build({"d": {"big": File(Path("/x"), 1 << 32)}}, label="X")


def test_a_directory_has_at_most_65536_entries() -> None:
    def names(count: int) -> Tree:
        return {f"N{number}": File.of(b"") for number in range(count)}

    assert build({"d": names(65_534)}, label="X")
    with pytest.raises(MicrovmError, match="the directory 'd' has 65535 names, which take 65537 entries"):
        build({"d": names(65_535)}, label="X")


@pytest.mark.parametrize("size", [6, 8])
def test_a_source_that_has_changed_leaves_what_was_there(tmp_path: Path, size: int) -> None:
    (tmp_path / "source").write_bytes(b"x" * size)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/image").write_bytes(b"the old one")
    layout = build({"s": File(tmp_path / "source", 7)}, label="X")
    with pytest.raises(MicrovmError, match=f"'s' has changed .* had 7 bytes and now has {size}"):
        write(layout, tmp_path / "out/image")
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"the old one"]


def test_read_tree(tmp_path: Path) -> None:
    (tmp_path / "keys/deep/er").mkdir(parents=True)
    (tmp_path / "keys/b").write_bytes(b"12")
    (tmp_path / "keys/deep/er/a").write_bytes(b"")
    assert read_tree(tmp_path / "keys") == {
        "b": File(tmp_path / "keys/b", 2),
        "deep": {"er": {"a": File(tmp_path / "keys/deep/er/a", 0)}},
    }


def test_read_tree_refuses_links_by_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/shadow")
    with pytest.raises(MicrovmError, match="/link' is neither a file nor a directory"):
        read_tree(tmp_path)
