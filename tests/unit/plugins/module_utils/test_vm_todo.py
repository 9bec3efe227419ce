# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_config, vm_todo
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_changes import Call
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths

PATHS = Paths.of("web", state_dir=Path("/state"), run_dir=Path("/run"))
OPTIONS: dict[str, Any] = {"name": "web", "payload": {"kernel": "/kernel"}, "grace": 90}
RECORD = {"options": OPTIONS, "config": vm_config.parse(OPTIONS, PATHS).config}


@pytest.mark.parametrize("state", ["running", "present", "paused", "restarted"])
def test_a_vm_that_is_known_needs_its_name_alone(state: str) -> None:
    asked = vm_todo.asked({"name": "web", "state": state}, PATHS, RECORD)
    assert asked.spec == vm_config.parse(OPTIONS, PATHS)
    assert (asked.state, asked.options, asked.anew) == (state, OPTIONS, False)


def test_a_vm_that_is_not_known_needs_a_payload() -> None:
    with pytest.raises(MicrovmError, match="no VM of this name is known on the host") as raised:
        vm_todo.asked({"name": "web"}, PATHS, None)
    assert raised.value.option == "payload"


def test_what_is_asked_anew_differs_from_the_record() -> None:
    given = {**OPTIONS, "state": "running", "apply": "restart", "memory": None}
    assert vm_todo.asked(given, PATHS, None).anew
    assert not vm_todo.asked(given, PATHS, RECORD).anew
    assert vm_todo.asked({**given, "cpus": {"boot": 2}}, PATHS, RECORD).anew


@pytest.mark.parametrize("state", ["stopped", "absent"])
def test_a_stop_by_name_alone_leaves_the_guest_the_time_on_record(state: str) -> None:
    by_name = vm_todo.asked({"name": "web", "state": state}, PATHS, RECORD)
    assert (by_name.grace, by_name.spec) == (90, None)
    assert vm_todo.asked({"name": "web", "state": state, "grace": 0}, PATHS, RECORD).grace == 0
    assert vm_todo.asked({"name": "web", "state": state}, PATHS, None).grace == vm_config.DEFAULT_GRACE


def test_each_call_and_each_repair_is_told_of() -> None:
    calls = vm_todo.Calls((Call("vcpus", value=2), Call("remove", name="data")))
    todo = vm_todo.Todo(("record", "unit", vm_todo.TapRepairs(("set tap0 up",)), calls, "pause"))
    assert [*todo.said()] == [
        "recorded what is asked",
        "wrote the unit",
        "set tap0 up",
        "set cpus.boot to 2",
        "unplugged data",
        "pause",
    ]
