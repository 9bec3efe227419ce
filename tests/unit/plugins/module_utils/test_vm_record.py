# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_record
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

ROOT = {"id": "root", "path": "/vms/web/root.raw", "readonly": False}
BASE = {"id": "base", "path": "/images/base.raw", "readonly": True}
RECORD = {"config": {"disks": [ROOT]}, "booted": {"config": {"disks": [BASE]}}}


def test_the_disks_that_a_vmm_has_are_those_on_record() -> None:
    said = {"disks": [{**BASE, "readonly": False}, {**ROOT, "bdf": "0:1"}]}
    assert vm_record.attached_disks(RECORD, said) == [BASE, ROOT]
    assert vm_record.attached_disks({}, {"disks": None}) == []


@pytest.mark.parametrize(
    "disk", [{"id": "root", "path": "/etc/shadow"}, {"id": "../../x", "path": ROOT["path"]}, {"path": ROOT["path"]}]
)
def test_no_other_file_is_a_disk_because_the_vmm_says_so(disk: dict[str, str]) -> None:
    with pytest.raises(MicrovmError, match="which is not on record"):
        vm_record.attached_disks(RECORD, {"disks": [disk]})
