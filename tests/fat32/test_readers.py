# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

"""Images of generated trees, read back by three readers that are not ours: fsck.vfat, mtools and pyfatfs."""

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyfatfs.PyFatFS import PyFatFS

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import fat32
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.fat32 import File, Tree
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.fat_names import fold

Plain = Mapping[str, "bytes | Plain"]


def tree_of(plain: Plain) -> Tree:
    return {name: File.of(entry) if isinstance(entry, bytes) else tree_of(entry) for name, entry in plain.items()}


def flat(plain: Plain, path: str = "") -> Iterator[tuple[str, bytes | None]]:
    """Each file and directory by its path; None for a directory."""
    for name, entry in plain.items():
        yield f"{path}/{name}", entry if isinstance(entry, bytes) else None
        if not isinstance(entry, bytes):
            yield from flat(entry, f"{path}/{name}")


def by_pyfatfs(image: Path) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    with PyFatFS(str(image), read_only=True, encoding="ascii") as filesystem:
        for path in filesystem.walk.files("/"):
            found[path] = filesystem.readbytes(path)
        for path in filesystem.walk.dirs("/"):
            found[path] = None
    return found


def by_mtools(image: Path) -> dict[str, bytes | None]:
    with tempfile.TemporaryDirectory() as directory:
        argv = ["mcopy", "-s", "-Q", "-n", "-i", str(image), "::/", directory]
        subprocess.run(argv, check=True, capture_output=True, env={"LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"})
        root = Path(directory)
        return {f"/{path.relative_to(root)}": None if path.is_dir() else path.read_bytes() for path in root.rglob("*")}


def check_with_fsck(image: Path) -> None:
    done = subprocess.run(["fsck.vfat", "-n", "-v", str(image)], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    # In memory where there is such a place: thousands of images are written.
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory) / "image"


# Beside the forbidden ones: mtools and Python's own file names cannot tell U+FFFD, lone surrogates or NULs back.
characters = st.characters(codec="utf-8", exclude_characters='"*/:<>?\\|\x7f\ufffd', exclude_categories=["Cc", "Cs"])
names = st.one_of(
    st.text(st.sampled_from("abcABC123.~ -_+é"), min_size=1, max_size=14),
    st.text(characters, min_size=1, max_size=30),
).filter(lambda name: name[-1] not in ". ")
contents = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([0, 1, 511, 512, 513, 1024, 1537])
    .map(lambda size: bytes(range(256)) * (size // 256 + 1))
    # sizes at the edges of clusters
    .flatmap(lambda data: st.sampled_from([data[:511], data[:512], data[:513], data])),
)


def directories(entries: st.SearchStrategy[bytes | Plain]) -> st.SearchStrategy[Plain]:
    return st.lists(st.tuples(names, entries), max_size=8, unique_by=lambda pair: fold(pair[0])).map(dict)


trees = directories(st.recursive(contents, directories, max_leaves=12))


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(plain=trees)
@example(plain={})
@example(plain={"d": {"d": {"d": {"d": {}}}}})
@example(plain={f"a name of some length, number {number}": b"" for number in range(400)})
@example(plain={"x" * 255: b"1", "😀" * 127: b"2", ".hidden": b"3", "a.b.c": b"4", " leading": b"5"})
@example(plain={"abcdefghi": b"1", "ABCDEF~1": b"2", "ABCDEF~2": b"3"})
@example(plain={"exactly 13 ch": b"", "twelve chars": b"", "fourteen chars": b""})
def test_three_other_readers_agree(image: Path, plain: Plain) -> None:
    fat32.write(fat32.build(tree_of(plain), label="SERVICEDISK"), image)
    expected = dict(flat(plain))
    check_with_fsck(image)
    # mtools knows UCS-2 only, and shows other characters as "_".
    if max("".join(expected), default="") <= "\uffff":
        assert by_mtools(image) == expected
    assert by_pyfatfs(image) == expected


def test_large_clusters(image: Path) -> None:
    plain = {"d": {"a": b"x" * 5000, "empty": b""}, "b": b"y" * 4096}
    layout = fat32.build(tree_of(plain), label="X", free_bytes=300 << 20)
    assert layout.cluster_size == 4096
    fat32.write(layout, image)
    check_with_fsck(image)
    assert by_mtools(image) == by_pyfatfs(image) == dict(flat(plain))


@pytest.mark.parametrize("label", ["SERVICEDISK", "CIDATA", "A-B_1"])
def test_the_label_is_seen_whole(image: Path, label: str) -> None:
    fat32.write(fat32.build({}, label=label), image)
    shown = subprocess.run(["mlabel", "-s", "-i", str(image), "::"], text=True, capture_output=True, check=True)
    assert shown.stdout.strip() == f"Volume label is {label}"
    seen = subprocess.run(
        ["blkid", "-o", "value", "-s", "LABEL", str(image)], text=True, capture_output=True, check=True
    )
    assert seen.stdout.strip() == label


def test_a_source_on_disk_arrives_whole(image: Path, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_001
    (tmp_path / "binary").write_bytes(content)
    fat32.write(fat32.build({"service": File(tmp_path / "binary", len(content))}, label="X"), image)
    check_with_fsck(image)
    assert by_mtools(image) == {"/service": content}
