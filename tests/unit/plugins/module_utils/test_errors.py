# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError


@pytest.mark.parametrize(
    ("option", "vm", "text"),
    [
        (None, None, "wrong"),
        ("size", None, "option 'size': wrong"),
        (None, "web", "VM 'web': wrong"),
        ("size", "web", "VM 'web', option 'size': wrong"),
    ],
)
def test_message_says_where(option: str | None, vm: str | None, text: str) -> None:
    assert str(MicrovmError("wrong", option=option, vm=vm)) == text


def test_for_vm_keeps_the_name_that_is_known() -> None:
    assert MicrovmError("wrong").for_vm("web").vm == "web"
    assert MicrovmError("wrong", vm="db").for_vm("web").vm == "db"
