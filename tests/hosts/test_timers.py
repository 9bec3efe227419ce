# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the host's timers do: logs are rotated, and Prometheus is told."""

from __future__ import annotations

import pvh_guest
from conftest import LOG_SIZE, METRICS, Node
from prometheus_client.parser import text_string_to_metric_families


def test_a_log_that_a_vmm_writes_is_rotated_and_nothing_is_lost(node: Node) -> None:
    log = node.vm("web", payload={"kernel": "/srv/counting.elf"})["serial_log"]
    for rotation in (1, 2, 3):
        node.until(lambda: int(node.out(f"du --block-size=1 {log}").split()[0]) > 2 * LOG_SIZE)
        node.ssh("systemctl start microvm-logs.service")
        assert node.ssh(f"test -e {log}.{rotation} && test ! -e {log}.{rotation + 1}", check=False).returncode == 0
    assert node.out(f"stat --format=%U:%a {log} {log}.1").split() == ["vm-web:600"] * 2
    node.vm("web", by_name=True, state="stopped", grace=0)
    written = node.out(f"cat {log}.3 {log}.2 {log}.1 && tr --delete '\\000' <{log}")
    banner = pvh_guest.BANNER.decode().strip()
    assert written.startswith(banner)
    numbers = pvh_guest.numbers(written.removeprefix(banner).lstrip())
    assert len(numbers) > 3 * LOG_SIZE // 8
    assert numbers == list(range(len(numbers)))
    node.vm("web", by_name=True, state="absent", grace=0)
    assert node.ssh("ls -A /var/lib/microvm/vms").stdout == ""


def test_a_log_that_is_small_is_left_alone(node: Node) -> None:
    log = node.vm("web")["serial_log"]
    node.ssh("systemctl start microvm-logs.service")
    assert node.out(f"ls {log}*") == log


def test_prometheus_is_told_of_the_vms(node: Node) -> None:
    node.vm("web", limits={"memory_max": "128MiB"})
    node.vm("off", state="present")
    node.ssh("systemctl start microvm-metrics.service")
    told = node.out(f"cat {METRICS}/microvm.prom")
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(told + "\n")
        for sample in family.samples
    }
    assert values["microvm_up", "web"] == values["microvm_up", "off"] == 1
    assert values["microvm_state", "running", "web"] == values["microvm_state", "off", "stopped"] == 1
    assert values["microvm_memory_bytes", "web"] == 64 << 20
    assert 0 < values["microvm_cgroup_memory_bytes", "web"] <= 128 << 20
    assert values["microvm_info", node.info("web")["vmm_version"], "web"] == 1
    assert node.out(f"stat --format=%U:%a {METRICS}/microvm.prom") == "root:644"


def test_the_timers_do_so_by_themselves(node: Node) -> None:
    node.ssh(f"rm --force {METRICS}/microvm.prom")
    node.until(lambda: node.ssh(f"test -e {METRICS}/microvm.prom", check=False).returncode == 0)
    shown = node.out("systemctl is-enabled microvm-logs.timer microvm-metrics.timer").split()
    assert shown == ["enabled", "enabled"]
    assert node.out("systemctl show --value --property=NextElapseUSecMonotonic microvm-logs.timer") != "infinity"
