# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What node_exporter would read, read by Prometheus' own parser."""

from __future__ import annotations

import stat
from pathlib import Path

from prometheus_client import parser

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import metrics

WEB = {
    "state": "running",
    "vmm_died": False,
    "uptime": 86400,
    "vmm_version": 'v53.0 "odd" \\ name\n',
    "config": {"cpus": {"boot_vcpus": 2}, "memory": {"size": 1 << 30}, "balloon": {"size": 1 << 20}},
    "memory_actual_size": (1 << 30) - (1 << 20),
    "counters": {
        "_net0": {"rx_bytes": 10, "tx_bytes": 20},
        "root": {"read_bytes": 1 << 40, "read_latency_min": 18446744073709551615},
    },
    "cgroup": {"memory_bytes": 123, "cpu_seconds": 1.25},
}
DB = {"state": "stopped", "vmm_died": True, "uptime": None, "vmm_version": None, "config": {}, "counters": {}}


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_known_of_each_vm() -> None:
    text = metrics.text(metrics.families({"web": WEB, "db": DB, "lost": None}))
    found = samples(text)

    def value(name: str, **labels: str) -> float | None:
        return found.get((name, frozenset(labels.items())))

    assert [value("microvm_up", vm=name) for name in ("web", "db", "lost")] == [1, 1, 0]
    assert [value("microvm_state", vm="web", state=state) for state in metrics.STATES] == [1, 0, 0, 0]
    assert [value("microvm_state", vm="db", state=state) for state in metrics.STATES] == [0, 0, 0, 1]
    assert [value("microvm_vmm_died", vm=name) for name in ("web", "db", "lost")] == [0, 1, None]
    assert value("microvm_uptime_seconds", vm="web") == 86400
    assert value("microvm_uptime_seconds", vm="db") is None
    assert value("microvm_info", vm="web", vmm_version='v53.0 "odd" \\ name\n') == 1
    assert value("microvm_vcpus", vm="web") == 2
    assert value("microvm_memory_bytes", vm="web") == (1 << 30) - (1 << 20)
    assert value("microvm_balloon_bytes", vm="web") == 1 << 20
    assert value("microvm_device_rx_bytes_total", vm="web", device="_net0") == 10
    assert value("microvm_device_read_bytes_total", vm="web", device="root") == 1 << 40
    assert value("microvm_cgroup_memory_bytes", vm="web") == 123
    assert value("microvm_cgroup_cpu_seconds_total", vm="web") == 1.25
    assert not [name for name, _labels in found if "latency" in name]


def test_the_names_follow_the_conventions() -> None:
    for family in metrics.families({"web": WEB, "db": DB}):
        assert family.name.startswith("microvm_")
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert family.help.endswith("."), family.name


def test_a_host_without_vms() -> None:
    assert metrics.text(metrics.families({})) == ""


def test_the_file_is_replaced_and_for_all_to_read(tmp_path: Path) -> None:
    for vms in ({"web": WEB}, {}):
        path = metrics.write(tmp_path, metrics.families(vms))
        assert path.read_text() == metrics.text(metrics.families(vms))
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["microvm.prom"]
