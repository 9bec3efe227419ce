# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import limits
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

MIB = 1 << 20
CONFIG: dict[str, Any] = {"memory": {"size": 64 * MIB}}


def settings(config: dict[str, Any] | None = None, **options: Any) -> dict[str, str]:
    return limits.settings(options, config or CONFIG, directory="/var/lib/microvm/vms/web")


def test_a_vm_may_use_what_its_guest_has_and_some_more() -> None:
    assert settings() == {"MemoryMax": str(320 * MIB)}
    growing = {"memory": {"size": 64 * MIB, "hotplug_size": 36 * MIB}}
    assert settings(growing) == {"MemoryMax": str(356 * MIB)}
    zoned = {"memory": {"size": 0, "zones": [{"size": 10 * MIB}, {"size": 20 * MIB, "hotplug_size": 2 * MIB}]}}
    assert settings(zoned) == {"MemoryMax": str(288 * MIB)}


def test_all_limits() -> None:
    assert settings(
        cpu_quota="150%",
        cpu_weight=50,
        memory_max="infinity",
        io_weight=200,
        io_read_max="10MiB",
        io_write_max="5MiB",
        tasks_max=20,
    ) == {
        "CPUQuota": "150%",
        "CPUWeight": "50",
        "IOWeight": "200",
        "IOReadBandwidthMax": f"/var/lib/microvm/vms/web {10 * MIB}",
        "IOWriteBandwidthMax": f"/var/lib/microvm/vms/web {5 * MIB}",
        "TasksMax": "20",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpu_quota": "1.5"}, "option 'limits.cpu_quota': '1.5' is no share of CPU time"),
        ({"cpu_quota": "50%\nUser=root"}, "option 'limits.cpu_quota'"),
        ({"cpu_weight": 0}, "option 'limits.cpu_weight': 0 is no weight"),
        ({"io_weight": 10001}, "option 'limits.io_weight': 10001 is no weight"),
        ({"memory_max": "64MiB"}, "option 'limits.memory_max': 67108864 bytes are asked for, and the guest alone"),
        ({"memory_max": "lots"}, "option 'limits.memory_max': 'lots' is not a size"),
        ({"tasks_max": 0}, "option 'limits.tasks_max': 0 tasks are none"),
    ],
)
def test_what_is_no_limit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MicrovmError) as caught:
        settings(**options)
    assert str(caught.value).startswith(message)


def test_huge_pages_are_not_counted() -> None:
    assert settings({"memory": {"size": 64 * MIB, "hugepages": True}}, memory_max="32MiB") == {
        "MemoryMax": str(32 * MIB)
    }


@pytest.mark.parametrize(("most", "lets"), [("1GiB", str(1024 * MIB + 64 * MIB + 256 * MIB)), ("infinity", None)])
def test_two_vmms_may_have_the_guests_memory_twice(most: str, lets: str | None) -> None:
    allowed = limits.for_two({"memory_max": most, "tasks_max": 20}, {"memory": {"size": 64 * MIB}})
    assert (allowed.get("MemoryMax"), allowed["TasksMax"]) == (lets, "infinity")
