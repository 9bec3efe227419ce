# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, lookup_loader
from ansible.template import Templar
from ansible.utils.collection_loader import AnsibleCollectionConfig

if AnsibleCollectionConfig.collection_finder is None:  # ansible-test has one of its own
    init_plugin_loader()

LEASES = {"web": {"address": "10.213.0.2"}, "db": {"address": "10.213.0.6"}, "failed": {"failed": True}}


class Results(dict[str, Any]):
    """What earlier steps returned: of the size of all VMs."""

    def __deepcopy__(self, memo: object) -> Any:
        raise AssertionError("copied")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/user-data.j2").write_text("#cloud-config\n{{ vm.name }} {{ lease.address }} {{ site }}\n")
    (tmp_path / "templates/meta-data.j2").write_text('{"instance-id": "{{ vm.name }}"}')
    (tmp_path / "templates/network-config.j2").write_text("{% include 'part.j2' %}")
    (tmp_path / "templates/part.j2").write_text("version: 2")
    return tmp_path


def lookup(place: Path, *vms: dict[str, Any]) -> dict[str, Any]:
    variables = {"site": "north", "vm_lease_step": Results(), "ansible_search_path": [str(place)]}
    loader = DataLoader()
    templar = Templar(loader, variables=variables)
    plugin = lookup_loader.get("microvm.cloud_hypervisor.cidata", loader=loader, templar=templar)
    (documents,) = plugin.run([list(vms)], variables, leases=LEASES)
    return documents


def test_each_vm_that_has_a_lease_gets_its_documents(place: Path) -> None:
    assert lookup(place, {"name": "web"}, {"name": "db"}, {"name": "failed"}, {"name": "unknown"}) == {
        name: {
            "user_data": f"#cloud-config\n{name} {LEASES[name]['address']} north\n",
            "meta_data": f'{{"instance-id": "{name}"}}',
            "network_config": "version: 2",
        }
        for name in ("web", "db")
    }


def test_a_template_of_your_own(place: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.j2"
    own.write_text("own of {{ vm.name }}")
    documents = lookup(place, {"name": "web", "user_data_template": str(own)}, {"name": "db"})
    assert documents["web"]["user_data"] == "own of web"
    assert documents["db"]["user_data"].startswith("#cloud-config")


def test_a_template_that_is_missing_is_named(place: Path) -> None:
    with pytest.raises(AnsibleError, match=r"nowhere\.j2"):
        lookup(place, {"name": "web", "meta_data_template": "nowhere.j2"})
