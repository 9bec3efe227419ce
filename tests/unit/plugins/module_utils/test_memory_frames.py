# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import memory_frames
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.memory_frames import LEFT, Frames, framed

SENT = framed(b"abc")[0] + framed(b"d" * 70000)[0] + LEFT + b"what comes behind"


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 4096, len(SENT)])
def test_frames_are_taken_apart_however_they_come(at_once: int) -> None:
    frames = Frames()
    content = b""
    for start in range(0, len(SENT), at_once):
        part, left = frames(SENT[start : start + at_once])
        content += part
        assert left == frames.left
    assert content == b"abc" + b"d" * 70000
    assert frames.left


def test_an_end_without_a_word_is_no_leave() -> None:
    frames = Frames()
    assert frames(framed(b"abc")[0] + memory_frames.LEFT[:3]) == (b"abc", False)
    assert not frames.left
