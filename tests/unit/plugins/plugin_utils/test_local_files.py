# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils.local_files import walk


def test_files_of_any_depth_are_found_decrypted(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/key").write_bytes(b"encrypted")
    plain = tmp_path.parent / "plain"
    plain.write_bytes(b"key")
    found = walk(tmp_path, lambda _path: plain)
    assert list(found) == ["a/b/key"] and (found["a/b/key"].size, found["a/b/key"].path) == (3, plain)
    assert list(walk(plain, lambda path: path)) == [""]


@pytest.mark.parametrize("target", ["/etc", "/etc/passwd", "nowhere"])
def test_links_are_refused_by_name(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ValueError, match="link.*neither a file nor a directory"):
        walk(tmp_path, lambda path: path)
