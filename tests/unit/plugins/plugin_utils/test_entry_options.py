# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils.compose import OPTIONS, ComposeError
from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils.entry_options import _SPECS, check


def test_options_that_there_are() -> None:
    check([{"name": "a", "cpus": {"boot": "2"}, "forwards": [{"port": 80}], "egress": None}, {"name": "b"}])


def test_all_options_are_known() -> None:
    assert {module: set(keys) - set(_SPECS[module]) for module, keys in OPTIONS.items()} == {
        key: set() for key in OPTIONS
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"cpus": {"count": 2}},
            r"VM 'b': ch_vm does not take cpus\.count\. Supported parameters include: affinity, boot",
        ),
        ({"forwards": [{"port": 80, "to": 8080}]}, r"ch_nft does not take forwards\.to\."),
        ({"pool": {"cidr": "10.0.0.0/8", "prefx": 30}}, r"ch_lease does not take pool\.prefx\."),
        ({"root": {"mode": "clone"}}, r"ch_disks does not take .*mode"),
    ],
)
def test_options_that_there_are_not(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ComposeError, match=message):
        check([{"name": "a"}, {"name": "b", **options}])
