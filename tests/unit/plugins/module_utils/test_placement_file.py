# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import placement_file
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "placements.json"
    assert placement_file.read(path) == {}
    placement_file.write(path, {"web": "h2", "db": "h1"})
    assert placement_file.read(path) == {"web": "h2", "db": "h1"}
    assert path.read_text() == '{\n  "db": "h1",\n  "web": "h2"\n}\n'


@pytest.mark.parametrize("content", ["", "[]", '{"web": 1}'])
def test_another_content_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "placements.json"
    path.write_text(content)
    with pytest.raises(MicrovmError, match="option 'path'"):
        placement_file.read(path)


def test_a_directory_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MicrovmError, match="cannot be written"):
        placement_file.write(tmp_path / "none" / "placements.json", {})
