# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.names import check_vm_name


@pytest.mark.parametrize("name", ["a", "web-1", "0", "x" * 63])
def test_accepted(name: str) -> None:
    assert check_vm_name(name) == name


@pytest.mark.parametrize("name", ["", "-web", "web-", "Web", "we_b", "a/b", "..", "x" * 64, "web\n", "wéb"])
def test_refused_by_name(name: str) -> None:
    with pytest.raises(MicrovmError, match="is not a VM name") as caught:
        check_vm_name(name)
    assert repr(name) in str(caught.value)
