# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_bulk, vmm_api
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

PARAMS = {"name": None, "size": 1, "vms": [{"name": "a"}, {"name": "b", "size": 2}]}
CALL = {"workers": 2, "state_dir": "/s", "run_dir": "/r"}


def test_each_vm_s_work_has_its_own_options_and_the_places_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmm_api, "_MISSING", None)
    asked = {}

    def ensure(item: dict[str, Any], *, check_mode: bool, runner: Any, **places: Path) -> Outcome:
        asked[item["name"]] = (item, check_mode, places)
        return Outcome(changed=item["size"] == 2)

    result = vm_bulk.run({**PARAMS, **CALL}, ensure, check_mode=True)
    places = {"state_dir": Path("/s"), "run_dir": Path("/r")}
    assert asked == {
        "a": ({"name": "a", "size": 1}, True, places),
        "b": ({"name": "b", "size": 2}, True, places),
    }
    assert {name: vm["changed"] for name, vm in result["vms"].items()} == {"a": False, "b": True}


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmm_api, "_MISSING", "No module named 'requests'")
    with pytest.raises(MicrovmError, match=r"requests-unixsocket .* \(No module named 'requests'\)"):
        vm_bulk.items({**PARAMS, **CALL})


def test_a_list_s_items_take_what_the_module_takes() -> None:
    spec = vm_bulk.argument_spec({"name": {"type": "str"}}, more={"type": "int"})
    assert spec.keys() == {"name", "vms", "workers", "state_dir", "run_dir", "more"}
    assert spec["vms"]["options"] == {"name": {"type": "str"}}
