# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import unflushed
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

DISK = {"id": "data-main", "path": "/vms/web/data-main.qcow2", "image_type": "Qcow2", "readonly": False}


def config(**options: Any) -> dict[str, Any]:
    return {"disks": [{"id": "root", "path": "/vms/web/root.raw", "image_type": "Raw"}, {**DISK, **options}]}


def test_a_qcow2_image_that_the_guest_writes_to_is_refused() -> None:
    with pytest.raises(MicrovmError, match="so that a migration could damage it") as raised:
        unflushed.refuse(config(), accepted=None, what="a migration")
    assert raised.value.option == "disks.data-main"


@pytest.mark.parametrize(
    ("asked", "accepted"),
    [(config(readonly=True), None), (config(image_type="Raw"), False), (config(), True), ({}, None)],
)
def test_nothing_else_is(asked: dict[str, Any], accepted: bool | None) -> None:
    unflushed.refuse(asked, accepted=accepted, what="a migration")
