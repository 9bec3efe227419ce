# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host's directories for one test, and VMs with the tiny PVH guest in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import real_vmms

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_facts, vm_ready
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner

STAND_IN = Path(__file__).parent / "qemu_vmm/cloud-hypervisor"
RUNNER = HostRunner()


@dataclass
class Host:
    """A host's directories for one test, and the VMM that it uses."""

    state_dir: Path
    run_dir: Path
    vmm: str
    payload: Path
    taps: list[str] = field(default_factory=list)

    @property
    def release(self) -> tuple[int, int]:
        """The VMM's release."""
        return real_vmms.release(self.vmm)

    def tells_what_was_written(self, mode: str) -> bool:
        """Whether one who attaches to a serial port of this mode gets what the guest wrote before."""
        return self.release >= {"pty": (50, 0), "socket": (53, 0)}[mode]

    def options(self, name: str, **options: Any) -> dict[str, Any]:
        return {"name": name, "vmm": self.vmm, "payload": {"kernel": str(self.payload)}, "grace": 0, **options}

    def ensure(self, name: str, *, check_mode: bool = False, **options: Any) -> Outcome:
        """Ask for a VM by all its options, or by its name and state alone."""
        full = options if options.pop("by_name", False) else self.options(name, **options)
        item = {"name": name, **full}
        return vm_ready.ensure(
            item, state_dir=self.state_dir, run_dir=self.run_dir, runner=RUNNER, check_mode=check_mode
        )

    def info(self, name: str) -> dict[str, Any]:
        gathered = vm_facts.gather({"name": name}, state_dir=self.state_dir, run_dir=self.run_dir, runner=RUNNER)
        return dict(gathered.facts)


def nothing_left(host: Host) -> bool:
    return not any(host.state_dir.glob("vms/*")) and not any(host.run_dir.glob("*"))
