# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (1048576, 1 << 20),
        ("512", 512),
        ("512B", 512),
        ("4k", 4096),
        ("512MiB", 512 << 20),
        ("512 MB", 512 << 20),
        ("20G", 20 << 30),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text, option="size") == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "1 X", "20GiBs", "0x10", "\uff11"])
def test_refused_with_the_option(text: str) -> None:
    with pytest.raises(MicrovmError, match="option 'root.size': .* is not a size"):
        parse_size(text, option="root.size")
