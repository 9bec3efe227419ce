# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_growth
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_changes import Change
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_config import Spec

MIB = 1 << 20


def grown(image: Path, size: int, release: tuple[int, int], **disk: Any) -> tuple[Change, ...]:
    """Return the changes for an image of 2 MiB that is to have ``size`` bytes."""
    header = b"QFI\xfb" + bytes(20) + (2 * MIB).to_bytes(8, "big")
    image.write_bytes(header if disk["image_type"] == "Qcow2" else bytes(2 * MIB))
    config = {"disks": [{"id": "other", "path": "/nonsense"}, {"id": "data", "path": str(image), **disk}]}
    return vm_growth.changes(Spec(config, (), sizes={"data": size}), release)


@pytest.mark.parametrize(("kind", "since"), [("Raw", (50, 0)), ("Qcow2", (51, 0))])
def test_an_image_grows_from_a_release_on(tmp_path: Path, kind: str, since: tuple[int, int]) -> None:
    (change,) = grown(tmp_path / "image", 3 * MIB, since, image_type=kind)
    assert [call.words for call in change.calls] == [f"set the size of data to {3 * MIB}"]
    (refused,) = grown(tmp_path / "image", 3 * MIB, (since[0] - 1, 9), image_type=kind)
    assert (refused.how, refused.calls) == ("refused", ())
    assert f"growing it needs Cloud Hypervisor v{since[0]}.0 or later, and this is v{since[0] - 1}.9" in refused.words
    assert grown(tmp_path / "image", 2 * MIB, (43, 0), image_type=kind) == (), "it is as large as it is to be"


@pytest.mark.parametrize(
    ("size", "disk", "reason"),
    [
        (MIB, {"image_type": "Raw"}, "what is at the end of a disk that becomes smaller is lost"),
        (
            3 * MIB,
            {"image_type": "Qcow2", "backing_files": True},
            "grows no image that is based on another; stop the VM",
        ),
        (3 * MIB, {"image_type": "Vhdx"}, "grows no image of this kind; stop the VM"),
    ],
)
def test_what_no_release_does(tmp_path: Path, size: int, disk: dict[str, Any], reason: str) -> None:
    (change,) = grown(tmp_path / "image", size, (53, 0), **disk)
    assert (change.how, change.option) == ("refused", "disks.data.size")
    assert reason in change.words
