# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils import fleet
from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils.compose import ComposeError

GIB = 1 << 30
FLEET = [{"name": "web"}, {"name": "db"}]


def test_each_host_takes_its_own() -> None:
    placements = {"web": "h1", "db": "h2", "gone": "h1"}
    assert fleet.placed_on(FLEET, "h1", placements) == [{"name": "web"}]
    assert fleet.placed_on(FLEET, "h3", placements) == []


def test_a_vm_without_a_host_is_an_error_on_each_host() -> None:
    with pytest.raises(ComposeError, match="no host yet: db; run the playbook microvm.cloud_hypervisor.place"):
        fleet.placed_on(FLEET, "h1", {"web": "h1"})
    assert fleet.placed_on(FLEET, "h1", {"web": "h1"}, strict=False) == [{"name": "web"}]


def test_what_an_entry_takes() -> None:
    entry = {
        "name": "db",
        "image": "small",
        "cpus": {"boot": 4, "max": 8},
        "memory": {"size": "2GiB", "hotplug_size": "1GiB"},
        "root": {"size": "4GiB"},
        "data": [{"name": "main", "size": "10GiB", "mount": "/x"}],
        "anti_affinity": "db",
        "hosts": ["h1"],
    }
    assert fleet.demands([entry], [{"name": "small", "size": "1GiB"}]) == [
        {
            "name": "db",
            "memory": str(3 * GIB),
            "vcpus": 8,
            "disk": str(14 * GIB),
            "anti_affinity": "db",
            "hosts": ["h1"],
        }
    ]


def test_the_defaults_of_the_modules_count() -> None:
    images = [{"name": "small", "size": "1GiB"}, {"name": "other"}]
    small, other = fleet.demands([{"name": "a", "image": "small"}, {"name": "b", "image": "other"}], images)
    assert small == {"name": "a", "memory": str(GIB // 2), "vcpus": 1, "disk": str(GIB)}
    assert other["disk"] == str(20 * GIB)


def test_a_size_that_is_none() -> None:
    entries = [{"name": "a", "data": [{"name": "main", "size": "much"}]}, {"name": "b"}]
    with pytest.raises(MicrovmError, match=r"VM 'a', option 'data.main.size'"):
        fleet.demands(entries, [])
    assert [demand["name"] for demand in fleet.demands(entries, [], strict=False)] == ["b"]
