# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import capacity
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.capacity import Demand, Host, Ratios
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

MIB = 1 << 20
HOST = Host(memory=1000 * MIB, vcpus=4, disk_free=100 * MIB)
CONFIG: dict[str, Any] = {
    "cpus": {"boot_vcpus": 1, "max_vcpus": 3},
    "memory": {"size": 300 * MIB, "hotplug_size": 50 * MIB},
}


def test_vms_fit_until_one_does_not_and_smaller_ones_go_on() -> None:
    wanted = {name: Demand(memory=size * MIB) for name, size in (("a", 400), ("b", 500), ("c", 101), ("d", 100))}
    refused = capacity.refusals(wanted, {}, HOST, Ratios(memory_ratio=1.0))
    assert list(refused) == ["c"]
    assert str(refused["c"]).startswith(
        "VM 'c', option 'memory': the VM does not fit: it asks for 101MiB, 900MiB are promised to others, and the host has "
        "1000MiB, times 1 by capacity.memory_ratio"
    )


@pytest.mark.parametrize(
    ("demand", "ratios", "option"),
    [
        (Demand(memory=1001 * MIB), Ratios(memory_ratio=1.0), "memory"),
        (Demand(memory=1501 * MIB), Ratios(), "memory"),
        (Demand(vcpus=9), Ratios(vcpu_ratio=2.0), "cpus"),
        (Demand(disk=1001 * MIB), Ratios(), "disks"),
        (Demand(memory=1500 * MIB, vcpus=9, disk=1000 * MIB), Ratios(), None),
        (Demand(memory=1 << 50), Ratios(memory_ratio=None), None),
    ],
)
def test_each_resource_has_its_ratio(demand: Demand, ratios: Ratios, option: str | None) -> None:
    refused = capacity.refusals({"web": demand}, {}, HOST, ratios)
    assert (refused["web"].option if refused else None) == option


def test_what_is_there_and_asks_for_no_more_stays() -> None:
    before = {"web": Demand(memory=900 * MIB), "db": Demand(memory=900 * MIB)}
    strict = Ratios(memory_ratio=1.0)
    assert not capacity.refusals({"web": Demand(memory=800 * MIB)}, before, HOST, strict)
    assert list(capacity.refusals({"web": Demand(memory=901 * MIB)}, before, HOST, strict)) == ["web"]


def test_a_disk_takes_what_it_may_still_grow_by(tmp_path: Path) -> None:
    raw, overlay, readonly = tmp_path / "root.raw", tmp_path / "data.qcow2", tmp_path / "service.img"
    raw.write_bytes(b"x" * MIB)
    with raw.open("r+b") as file:
        file.truncate(10 * MIB)
    overlay.write_bytes(b"QFI\xfb" + bytes(20) + (7 * MIB).to_bytes(8, "big"))
    readonly.write_bytes(bytes(5 * MIB))
    disks = [
        {"path": str(raw), "image_type": "Raw"},
        {"path": str(overlay), "image_type": "Qcow2"},
        {"path": str(readonly), "image_type": "Raw", "readonly": True},
        {"path": str(tmp_path / "missing"), "image_type": "Raw"},
    ]
    demand = capacity.of_config({**CONFIG, "disks": disks})
    taken = sum(path.stat().st_blocks * 512 for path in (raw, overlay))
    assert demand == Demand(memory=350 * MIB, vcpus=3, disk=17 * MIB - taken)


def test_the_records_are_summed_up(tmp_path: Path) -> None:
    for name in ("web", "db"):
        (tmp_path / "vms" / name).mkdir(parents=True)
        (tmp_path / "vms" / name / "vm.json").write_text(json.dumps({"options": {}, "config": CONFIG}))
    (tmp_path / "vms" / "broken").mkdir()
    (tmp_path / "vms" / "broken" / "vm.json").write_text("{")
    told = capacity.facts(HOST, capacity.promised(tmp_path))
    assert told == {
        "memory": 1000 * MIB,
        "vcpus": 4,
        "disk_free": 100 * MIB,
        "promised_memory": 700 * MIB,
        "promised_vcpus": 6,
        "promised_disk": 0,
    }


def test_a_vm_without_disks_asks_for_all_of_them_and_one_on_record_for_what_is_left() -> None:
    asked = [{"name": name, "memory": "2MiB", "vcpus": 1, "disk": "9MiB"} for name in ("new", "web")]
    before = {"web": Demand(memory=MIB, vcpus=1, disk=4 * MIB)}
    assert capacity.demands(asked, before) == {
        "new": Demand(memory=2 * MIB, vcpus=1, disk=9 * MIB),
        "web": Demand(memory=2 * MIB, vcpus=1, disk=4 * MIB),
    }
    with pytest.raises(MicrovmError, match="VM 'new', option 'vms.disk': 'much' is not a size"):
        capacity.demands([{**asked[0], "disk": "much"}], before)


def test_a_call_is_looked_at_in_its_order(tmp_path: Path) -> None:
    def item(name: str, size: str, **options: Any) -> dict[str, Any]:
        return {"name": name, "payload": {"kernel": "/k"}, "memory": {"size": size}, **options}

    huge = f"{1 << 30}MiB"
    items = [item("a", "1MiB"), item("b", huge), item("c", huge, state="stopped"), item("d", "nonsense"), {"name": "e"}]
    for check_mode in (True, False):
        with capacity.admitted(
            items, Ratios(), state_dir=tmp_path, run_dir=tmp_path / "run", check_mode=check_mode
        ) as refused:
            assert list(refused) == ["b"]
            assert list(capacity.promised(tmp_path)) == ([] if check_mode else ["a"])
        assert not any(tmp_path.iterdir())


# Asks for half of what there is, says whether it got it, and keeps it until it is told to end.
CALL = """
import sys
from pathlib import Path
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import capacity

name, state_dir = sys.argv[1], Path(sys.argv[2])
ratio = 100 * 2**20 / capacity.read_host(state_dir).memory
item = {"name": name, "payload": {"kernel": "/k"}, "memory": {"size": "64MiB"}}
with capacity.admitted(
    [item], capacity.Ratios(memory_ratio=ratio), state_dir=state_dir, run_dir=state_dir, check_mode=False
) as refused:
    print("refused" if refused else "let in", flush=True)
    sys.stdin.readline()
"""


class Call:
    def __init__(self, name: str, state_dir: Path) -> None:
        argv = [sys.executable, "-c", CALL, name, str(state_dir)]
        # Of ansible-test's own ways to find the collection a new process knows nothing.
        environment = {**os.environ, "PYTHONPATH": str(Path(capacity.__file__).parents[5])}
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate("\n")


def test_of_two_calls_at_the_same_time_one_gets_what_is_there(tmp_path: Path) -> None:
    for _attempt in range(3):
        calls = [Call(name, tmp_path) for name in ("web", "db")]
        assert sorted(call.answer() for call in calls) == ["let in", "refused"]
        for call in calls:
            call.end()
        assert not any(tmp_path.iterdir())


def test_what_a_call_had_that_was_killed_is_there_again(tmp_path: Path) -> None:
    killed = Call("web", tmp_path)
    assert killed.answer() == "let in"
    killed.process.kill()
    killed.process.communicate()
    assert any(tmp_path.iterdir())
    assert not capacity.promised(tmp_path)
    again = Call("db", tmp_path)
    assert again.answer() == "let in"
    again.end()
    assert not any(tmp_path.iterdir())


def test_one_vm_that_is_asked_for_twice_counts_once(tmp_path: Path) -> None:
    calls = [Call("web", tmp_path), Call("web", tmp_path)]
    assert [call.answer() for call in calls] == ["let in", "let in"]
    for call in calls:
        call.end()


def test_a_real_host_has_something(tmp_path: Path) -> None:
    host = capacity.read_host(tmp_path / "not" / "there" / "yet")
    assert host.memory > 64 * MIB
    assert host.vcpus >= 1
    assert host.disk_free > 0
