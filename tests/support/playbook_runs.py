# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts that are this machine itself, each with directories of its own, to run the playbooks on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# In check mode it is asked for its version, no more.
VMM = Path(__file__).parent / "qemu_vmm/cloud-hypervisor"


@dataclass(frozen=True)
class Run:
    """What a run of a playbook printed and ended with, and its recap: the counts by host."""

    returncode: int
    output: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        lines = re.findall(r"^(\S+)\s+: (ok=.*)$", self.output, re.MULTILINE)
        return {host: {key: int(count) for key, count in re.findall(r"(\w+)=(\d+)", counts)} for host, counts in lines}

    def tasks(self, host: str) -> int:
        """Return how many tasks the host had, whatever became of them."""
        return sum(self.recap[host][key] for key in ("ok", "skipped", "failed", "unreachable"))


@dataclass(frozen=True)
class Hosts:
    """The inventory's directory, and what runs playbooks over it."""

    directory: Path

    def write(self, hosts: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the inventory: each host's variables beside those that all have."""
        image = {
            "name": "tiny",
            "disk": {"src": str(self.directory / "root.raw")},
            "kernel": {"src": str(self.directory / "pvh.elf")},
            "size": "1MiB",
        }
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "vm_state_dir": f"{self.directory}/state/{{{{ inventory_hostname }}}}",
            "vm_run_dir": f"{self.directory}/run/{{{{ inventory_hostname }}}}",
            "vm_uplink": "lo",
            "vm_images": [image],
            "vm_defaults": {
                "image": "tiny",
                "vmm": str(VMM),
                "memory": {"size": "32MiB"},
                "tap_prefix": "fleet",
            },
        }
        inventory = {"hypervisors": {"hosts": {name: dict(own) for name, own in hosts.items()}, "vars": variables}}
        (self.directory / "hosts.json").write_text(json.dumps(inventory))

    def run(self, playbook: str | Path, *arguments: str, **variables: Any) -> Run:
        """Run a playbook over the inventory."""
        argv = ["ansible-playbook", "-i", str(self.directory / "hosts.json"), str(playbook), *arguments]
        done = subprocess.run(
            [*argv, "-e", json.dumps(variables)], capture_output=True, text=True, check=False, cwd=self.directory
        )
        return Run(done.returncode, done.stdout + done.stderr)

    def role(self, *arguments: str, **variables: Any) -> Run:
        """Run the role vm, as the playbook provision does, but without preparing the host, which is this machine."""
        playbook = self.directory / "role.yml"
        plays = (Path(__file__).parents[2] / "playbooks/provision.yml").read_text()
        playbook.write_text(plays.replace("    - role: microvm.cloud_hypervisor.host\n", ""))
        assert playbook.read_text() != plays
        return self.run(playbook, *arguments, **variables)
