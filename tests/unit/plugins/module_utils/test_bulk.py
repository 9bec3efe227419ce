# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome, report, requested, run_each
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError


def test_one_vm() -> None:
    assert requested({"name": "web", "size": 1, "vms": None, "workers": 8}, shared=["workers"]) == [
        {"name": "web", "size": 1}
    ]


def test_what_stands_beside_the_list_is_each_items_default() -> None:
    params = {"name": None, "size": 1, "mode": "a", "vms": [{"name": "web", "size": None}, {"name": "db", "size": 2}]}
    assert requested(params) == [
        {"name": "web", "size": 1, "mode": "a"},
        {"name": "db", "size": 2, "mode": "a"},
    ]


def test_an_empty_list_asks_for_nothing() -> None:
    assert requested({"name": None, "vms": []}) == []


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"name": None, "vms": None}, "give either 'name' or 'vms'"),
        ({"name": "web", "vms": []}, "exclude each other"),
        ({"name": None, "vms": [{"name": "web"}, {"size": 1}]}, "item 1 has no 'name'"),
        ({"name": None, "vms": [{"name": "web"}, {"name": "web"}]}, "VM 'web'.* stands twice"),
    ],
)
def test_bad_calls_are_refused(params: Mapping[str, Any], message: str) -> None:
    with pytest.raises(MicrovmError, match=message):
        requested(params)


def test_a_failure_does_not_stop_the_others() -> None:
    def work(item: Mapping[str, Any]) -> Outcome:
        if item["name"] == "b":
            raise MicrovmError("no disk", option="image")
        return Outcome(changed=item["name"] == "c", facts={"pid": 1}, before={"state": "absent"}, after={"state": "on"})

    outcomes = run_each([{"name": name} for name in "abc"], work)
    assert list(outcomes) == ["a", "b", "c"]
    assert report(outcomes) == {
        "changed": True,
        "failed": True,
        "msg": "1 of 3 failed: VM 'b', option 'image': no disk",
        "diff": [
            {"before_header": "c", "after_header": "c", "before": {"state": "absent"}, "after": {"state": "on"}},
        ],
        "vms": {
            "a": {"changed": False, "actions": [], "pid": 1},
            "b": {"changed": False, "failed": True, "msg": "VM 'b', option 'image': no disk"},
            "c": {"changed": True, "actions": [], "pid": 1},
        },
    }


def test_as_many_at_once_as_workers() -> None:
    together = threading.Barrier(3, timeout=10)

    def work(item: Mapping[str, Any]) -> Outcome:
        together.wait()
        return Outcome(changed=False)

    assert len(run_each([{"name": str(number)} for number in range(3)], work, workers=3)) == 3


def test_never_more_at_once_than_workers() -> None:
    lock = threading.Lock()
    running: list[int] = [0, 0]

    def work(item: Mapping[str, Any]) -> Outcome:
        with lock:
            running[0] += 1
            running[1] = max(running)
        threading.Event().wait(0.01)
        with lock:
            running[0] -= 1
        return Outcome(changed=False)

    run_each([{"name": str(number)} for number in range(8)], work, workers=2)
    assert running[1] == 2


def test_what_the_system_refuses_one_vm_does_not_stop_the_others() -> None:
    def work(item: Mapping[str, Any]) -> Outcome:
        if item["name"] == "full":
            raise OSError(errno.ENOSPC, "No space left on device", "/vms/full/vm.json")
        return Outcome(changed=False, facts={})

    outcomes = run_each([{"name": "full"}, {"name": "web"}], work)
    assert "VM 'full'" in str(outcomes["full"]) and "No space left on device: '/vms/full/vm.json'" in str(
        outcomes["full"]
    )
    assert isinstance(outcomes["web"], Outcome)


def test_a_defect_is_not_taken_for_a_users_error() -> None:
    def work(item: Mapping[str, Any]) -> Outcome:
        raise KeyError("defect")

    with pytest.raises(KeyError):
        run_each([{"name": "a"}], work)
