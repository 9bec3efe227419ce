# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import snapshot_store
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.snapshot_store import Snapshot

MANIFEST = {"created": "2026-01-01T00:00:00+00:00", "vmm_version": None}


def made(state_dir: Path, name: str, created: str = "2026-01-01") -> Snapshot:
    path = snapshot_store.begin(state_dir, "web", name)
    (path / "disks").mkdir()
    (path / "disks/root").write_bytes(b"disk")
    return snapshot_store.finish(path, {**MANIFEST, "created": created})


def test_one_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = snapshot_store.begin(tmp_path, "web", "s")
    (path / "file").write_bytes(b"content")
    assert (snapshot_store.listed(tmp_path, "web"), snapshot_store.unfinished(tmp_path, "web")) == ([], [path])
    snapshot = snapshot_store.finish(path, MANIFEST)
    assert snapshot_store.unfinished(tmp_path, "web") == []
    assert snapshot_store.get(tmp_path, "web", "s") == snapshot
    assert snapshot.facts()["size"] == 7
    assert [oct(entry.stat().st_mode & 0o777) for entry in (tmp_path / "snapshots/web", snapshot.path)] == ["0o700"] * 2
    snapshot.verify(digests=True)


def test_they_are_listed_by_their_age(tmp_path: Path) -> None:
    for name, created in (("a", "2026-03-01"), ("b", "2026-01-01"), ("c", "2026-02-01")):
        made(tmp_path, name, created)
    assert [snapshot.name for snapshot in snapshot_store.listed(tmp_path, "web")] == ["b", "c", "a"]
    assert snapshot_store.with_snapshots(tmp_path) == ["web"]


def test_what_was_changed_is_found_out(tmp_path: Path) -> None:
    snapshot = made(tmp_path, "s")
    disk = snapshot.path / "disks/root"
    disk.write_bytes(b"dis?")
    snapshot.verify(digests=False)
    with pytest.raises(MicrovmError, match="is not what was written, by its digest"):
        snapshot.verify(digests=True)
    disk.write_bytes(b"disks")
    with pytest.raises(MicrovmError, match="has 5 bytes, and 4 were written"):
        snapshot.verify(digests=False)


@pytest.mark.parametrize("text", ["", "{", "{}", json.dumps({**MANIFEST, "format": 99, "files": {}})])
def test_a_manifest_that_is_none_makes_no_snapshot(tmp_path: Path, text: str) -> None:
    (made(tmp_path, "s").path / "manifest.json").write_text(text)
    with pytest.raises(
        MicrovmError, match="VM 'web', option 'snapshot': the VM has no snapshot 's' that is whole; it has: none"
    ):
        snapshot_store.get(tmp_path, "web", "s")


def test_removal_leaves_nothing(tmp_path: Path) -> None:
    one, two = made(tmp_path, "one"), made(tmp_path, "two")
    snapshot_store.remove(one.path)
    assert snapshot_store.listed(tmp_path, "web") == [two]
    snapshot_store.remove(two.path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".new.s", "../web", "a/b", "x" * 64])
def test_what_names_no_snapshot(name: str) -> None:
    with pytest.raises(MicrovmError, match="does not name a snapshot"):
        snapshot_store.check_name(name)
