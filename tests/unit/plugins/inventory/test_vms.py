# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, inventory_loader
from ansible.utils.collection_loader import AnsibleCollectionConfig

if AnsibleCollectionConfig.collection_finder is None:  # ansible-test has one of its own
    init_plugin_loader()

STATUS: dict[str, Any] = {
    "hosts": {
        "h1": {
            "vms": {
                "web": {
                    "state": "running",
                    "labels": {"address": "10.213.0.2", "image": "small-1", "tags": ["blue", "{{ 1 + 1 }}"]},
                },
                "h1": {"state": "stopped", "labels": {"address": "10.213.0.6", "image": "other"}},
            },
            "connection": {"type": "ssh", "host": "203.0.113.11"},
        },
        "h2": {"msg": "no route to host"},
    }
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "status.json").write_text(json.dumps(STATUS))
    return tmp_path / "guests.vms.yml"


def parsed(source: Path, use_cache: bool = True, **options: Any) -> InventoryData:
    source.write_text(json.dumps({"plugin": "microvm.cloud_hypervisor.vms", "status_file": "status.json", **options}))
    inventory = InventoryData()
    inventory.add_host("h1")
    plugin = inventory_loader.get("microvm.cloud_hypervisor.vms")
    assert plugin.verify_file(str(source))
    plugin.parse(inventory, DataLoader(), str(source), cache=use_cache)
    if options.get("cache"):
        plugin.update_cache_if_changed()
    return inventory


def members(inventory: InventoryData, group: str) -> list[str]:
    return sorted(host.name for host in inventory.groups[group].hosts)


def test_hosts_groups_and_variables(source: Path) -> None:
    inventory = parsed(source)
    # A VM of the name of a host that the inventory has must not become that host.
    assert members(inventory, "vms") == ["h1-h1", "web"]
    assert members(inventory, "state_running") == members(inventory, "image_small_1") == ["web"]
    assert members(inventory, "host_h1") == ["h1-h1", "web"]
    variables = inventory.hosts["web"].get_vars()
    assert variables["ansible_host"] == "10.213.0.2"
    assert "203.0.113.11" in variables["ansible_ssh_common_args"]
    assert variables["microvm_tags"][1] == "{{ 1 + 1 }}"


def test_without_the_default_groups(source: Path) -> None:
    inventory = parsed(source, default_groups=False, group="guests")
    assert members(inventory, "guests") == ["h1-h1", "web"]
    assert "state_running" not in inventory.groups


def test_constructed(source: Path) -> None:
    inventory = parsed(
        source,
        strict=True,
        compose={"ansible_user": "'root' if microvm_image is match('small') else 'debian'"},
        groups={"up": "microvm_state == 'running'"},
        keyed_groups=[{"key": "microvm_image.split('-')[0]", "prefix": "os"}],
    )
    assert inventory.hosts["web"].get_vars()["ansible_user"] == "root"
    assert members(inventory, "up") == members(inventory, "os_small") == ["web"]


def test_strict(source: Path) -> None:
    with pytest.raises(Exception, match="nothing_of_this_name"):
        parsed(source, strict=True, compose={"x": "nothing_of_this_name"})
    assert "x" not in parsed(source, compose={"x": "nothing_of_this_name"}).hosts["web"].get_vars()


def test_a_host_that_does_not_answer(source: Path) -> None:
    with pytest.raises(AnsibleParserError, match="host 'h2' did not answer: no route to host"):
        parsed(source, unanswered="error")


@pytest.mark.parametrize("content", ["", "{}", '{"hosts": []}'])
def test_a_status_file_that_is_none(source: Path, content: str) -> None:
    source.with_name("status.json").write_text(content)
    with pytest.raises(AnsibleParserError, match="status_file"):
        parsed(source)


def test_the_cache_is_used_and_renewed(source: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "cache": True,
        "cache_plugin": "ansible.builtin.jsonfile",
        "cache_connection": str(tmp_path / "cache"),
    }
    assert "web" in parsed(source, **options).hosts
    source.with_name("status.json").write_text(json.dumps({"hosts": {"h1": {"vms": {"new": {"state": "running"}}}}}))
    assert "web" in parsed(source, **options).hosts
    assert "new" in parsed(source, use_cache=False, **options).hosts
    assert "new" in parsed(source, **options).hosts


def test_the_process_that_asks_finds_nothing_here(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROVM_INVENTORY_ASKING", "1")
    assert "vms" not in parsed(source).groups


@pytest.mark.parametrize(("name", "ours"), [("vms.yml", True), ("a.vms.yaml", True), ("hosts.yml", False)])
def test_the_files_that_are_for_it(tmp_path: Path, name: str, ours: bool) -> None:
    (tmp_path / name).touch()
    assert inventory_loader.get("microvm.cloud_hypervisor.vms").verify_file(str(tmp_path / name)) is ours
