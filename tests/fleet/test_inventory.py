# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The inventory plugin, asking hosts: this machine, and one where nothing listens."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playbook_runs import Hosts

RECORD = """- hosts: h1
  gather_facts: false
  tasks:
    - microvm.cloud_hypervisor.ch_vm:
        name: web
        state: present
        payload: {kernel: pvh.elf}
        labels: {address: 10.213.0.2, image: tiny, tags: [blue]}
        vmm: "{{ vm_defaults.vmm }}"
        state_dir: "{{ vm_state_dir }}"
        run_dir: "{{ vm_run_dir }}"
"""


@pytest.fixture
def source(hosts: Hosts, tmp_path: Path) -> Path:
    """The plugin's source file, in the directory of the inventory that has the hosts."""
    # The first one, which does for all what is done once, is the one that is away: nothing listens there.
    hosts.write({"h0": {"ansible_connection": "ssh", "ansible_host": "127.0.0.9", "ansible_port": 9}, "h1": {}})
    (tmp_path / "record.yml").write_text(RECORD.replace("pvh.elf", f"{tmp_path}/pvh.elf"))
    run = hosts.run(tmp_path / "record.yml")
    assert run.returncode == 0, run.output
    directory = tmp_path / "inventory"
    directory.mkdir()
    (tmp_path / "hosts.json").rename(directory / "hosts.json")
    return directory / "guests.vms.yml"


def inventory(source: Path, **options: Any) -> tuple[dict[str, Any], str]:
    """Return the inventory of the source's whole directory, and what was warned of."""
    source.write_text(json.dumps({"plugin": "microvm.cloud_hypervisor.vms", **options}))
    argv = ["ansible-inventory", "-i", str(source.parent), "--list"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    # What hosts have told is marked, so that it is no template wherever it goes.
    listed = json.loads(done.stdout, object_hook=lambda value: value.get("__ansible_unsafe", value))
    return listed, done.stderr


def test_a_directory_with_the_hosts_and_the_plugin_s_own_file(source: Path) -> None:
    listed, warnings = inventory(source)
    assert listed["vms"]["hosts"] == listed["state_stopped"]["hosts"] == listed["tag_blue"]["hosts"] == ["web"]
    assert listed["hypervisors"]["hosts"] == ["h0", "h1"]
    assert listed["_meta"]["hostvars"]["web"]["ansible_host"] == "10.213.0.2"
    assert "ProxyCommand" not in listed["_meta"]["hostvars"]["web"]["ansible_ssh_common_args"]  # h1 is local
    assert "host 'h0' did not answer" in " ".join(warnings.split())


def test_a_host_that_must_answer(source: Path) -> None:
    listed, warnings = inventory(source, unanswered="error")
    assert "vms" not in listed
    assert "host 'h0' did not answer" in " ".join(warnings.split())


def test_no_host_at_all(source: Path) -> None:
    listed, warnings = inventory(source, hosts="nowhere")
    assert "vms" not in listed
    assert "no host matching 'nowhere'" in " ".join(warnings.split())
