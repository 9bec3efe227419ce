# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a VM's files and sockets are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """The paths of one VM: below ``state`` what outlives a reboot of the host, below ``run`` what does not."""

    name: str
    state: Path
    run: Path

    @classmethod
    def of(cls, name: str, *, state_dir: Path, run_dir: Path) -> Paths:
        """Return the paths of the VM ``name``."""
        return cls(name, state_dir / "vms" / name, run_dir / name)

    @property
    def state_dir(self) -> Path:
        """What is kept of all VMs."""
        return self.state.parent.parent

    def arguments(self) -> list[str]:
        """Return what tells the program ``microvm`` of these directories."""
        return ["--state-dir", str(self.state_dir), "--run-dir", str(self.run.parent)]

    @property
    def record(self) -> Path:
        """What was asked."""
        return self.state / "vm.json"

    @property
    def life(self) -> Path:
        """How far the VM has come, and how it ended."""
        return self.state / "life.json"

    @property
    def serial_log(self) -> Path:
        """The serial port's output, where its mode is file. It outlives the VMM, and a reboot of the host."""
        return self.state / "serial.log"

    @property
    def api_socket(self) -> Path:
        """The VMM's API."""
        return self.run / "api.sock"

    @property
    def vsock_socket(self) -> Path:
        """The host's side of the guest's vsock."""
        return self.run / "vsock.sock"

    @property
    def serial_socket(self) -> Path:
        """The serial port, where its mode is socket."""
        return self.run / "serial.sock"

    @property
    def event_log(self) -> Path:
        """What the VMM reports: one JSON object after the other."""
        return self.run / "events.json"

    @property
    def migration_socket(self) -> Path:
        """Where a VMM waits for the VM of another one."""
        return self.run / "migration.sock"

    @property
    def vmm_log(self) -> Path:
        """What the VMM prints."""
        return self.run / "vmm.log"
