# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM's VMM as an instance of a systemd template unit.

Facts from systemctl(1) and org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from . import systemd_dropin, vm_life
from .errors import MicrovmError
from .files import write
from .runner import Runner
from .tail import quoted
from .vm_paths import Paths

DEFAULT_UNIT = "microvm"
UNITS = Path("/etc/systemd/system")
# Of this boot of the host.
_PASSING_UNITS = Path("/run/systemd/system")
# sd_booted(3)
_BOOTED = Path("/run/systemd/system")
# Of two drop-ins that set the same, the one counts whose name sorts last, wherever they are.
_DROPIN, _PATIENCE, _RELOAD = "vm.conf", "vm.stop.conf", "vm.upgrade.conf"
_PROPERTIES = "ActiveState,MainPID,Restart,UnitFileState,NeedDaemonReload,InvocationID"
_SETTLE_SECONDS = 60.0
_POLL_SECONDS = 0.1


def installed(template: str) -> bool:
    """Return whether systemd runs this host and has the template unit ``template``, by its name without the ``@``."""
    return _BOOTED.is_dir() and (UNITS / f"{template}@.service").exists()


class SystemdUnit:
    """The VMM of one VM as a unit's main process. See vmm_process.Supervisor."""

    kind: Literal["systemd"] = "systemd"
    unprivileged = True

    def __init__(self, paths: Paths, *, template: str, runner: Runner) -> None:
        self._paths = paths
        self._runner = runner
        self.name = f"{template}@{paths.name}.service"
        self._dropins = UNITS / f"{self.name}.d"
        self._passing = _PASSING_UNITS / f"{self.name}.d"

    def show(self) -> dict[str, str]:
        """Return what systemd knows of the unit; nothing where the VM has none."""
        if not (self._dropins / _DROPIN).exists():
            return {}
        shown = self._systemctl("show", f"--property={_PROPERTIES}", self.name)
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def pid(self) -> int | None:
        """See Supervisor.pid."""
        return int(self.show().get("MainPID", 0)) or None

    def gave_up(self) -> bool:
        """See Supervisor.gave_up. A unit that is started again is not failed in between."""
        shown = self.show()
        return shown.get("ActiveState") == "failed" and shown.get("Restart") != "no"

    def settle(self) -> None:
        """See Supervisor.settle."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        going_on = ("activating", "deactivating", "reloading")
        while self.show().get("ActiveState") in going_on and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def start(self, argv: Sequence[str]) -> int:
        """See Supervisor.start. The drop-in has the argument vector. Raises MicrovmError where the VMM cannot be run."""
        shown = self.show()
        if shown.get("NeedDaemonReload") == "yes":
            self._systemctl("daemon-reload")
        if shown.get("ActiveState") == "failed":
            self._systemctl("reset-failed", self.name)
        started = self._runner.run(["systemctl", "start", self.name], check=False)
        pid = self.pid()
        if started.returncode != 0 or pid is None:
            raise MicrovmError(f"the unit {self.name} did not start; {self.last_words()}")
        return pid

    def signal(self, number: signal.Signals) -> None:
        """See Supervisor.signal."""
        if self.pid() is not None:
            self._runner.run(
                ["systemctl", "kill", "--kill-who=main", f"--signal={number.name}", self.name], check=False
            )

    def stop(self, grace: float, ask: Callable[[float], str | None]) -> str | None:
        """See Supervisor.stop. The unit's ExecStop= is what calls ``vm_stop.ask``, and is told of ``grace``."""
        if self.show().get("ActiveState", "inactive") in ("inactive", "failed"):
            return None
        self._have_patience(grace)
        life = vm_life.read(self._paths)
        if life is not None:
            vm_life.write(self._paths, replace(life, grace=grace))
        self._systemctl("stop", self.name)
        life = vm_life.read(self._paths)
        return life.stopped_by if life is not None and life.reason == "stopped" else None

    def _have_patience(self, grace: float) -> None:
        """Let a stop take as long as this one may, where that is longer than the drop-in says."""
        needed = systemd_dropin.stop_seconds(grace)
        if needed > systemd_dropin.stop_seconds_of(self.dropin() or ""):
            self._write(_PATIENCE, f"[Service]\nTimeoutStopSec={needed:g}\n")

    def forget(self) -> None:
        """See Supervisor.forget."""
        self._runner.run(["systemctl", "reset-failed", self.name], check=False)

    def last_words(self) -> str:
        """See Supervisor.last_words: what this start of the unit has written to the journal."""
        invocation = self.show().get("InvocationID")
        if not invocation:
            return quoted("")
        argv = ["journalctl", "--quiet", "--output=cat", "--lines=5", f"_SYSTEMD_INVOCATION_ID={invocation}"]
        return quoted(self._runner.run(argv, check=False).stdout)

    # ---- What is asked of the unit ----

    def dropin(self) -> str | None:
        """Return the text of the VM's drop-in, or None where there is none."""
        try:
            return (self._dropins / _DROPIN).read_text()
        except FileNotFoundError:
            return None

    def write_dropin(self, text: str) -> None:
        """Replace the VM's drop-in."""
        self._write(_DROPIN, text)

    def reloading(self) -> bool:
        """Return whether the unit is being reloaded."""
        return self.show().get("ActiveState") == "reloading"

    def reload(self, text: str) -> None:
        """Have the unit reloaded by a drop-in that says how, and stays until ``end_reload``; return once that is over."""
        self._passing.mkdir(mode=0o755, exist_ok=True)
        write(self._passing / _RELOAD, text.encode(), mode=0o644)
        # systemd does not see by itself that a directory has come: NeedDaemonReload stays no.
        self._systemctl("daemon-reload")
        self._runner.run(["systemctl", "reload", self.name], check=False)
        while self.reloading():  # systemctl ends with its connection
            time.sleep(_POLL_SECONDS)

    def end_reload(self) -> None:
        """Take back what ``reload`` has written, also where a run that was killed did that."""
        if (self._passing / _RELOAD).exists():
            (self._passing / _RELOAD).unlink()
            with suppress(OSError):  # others have theirs there
                self._passing.rmdir()
            self._systemctl("daemon-reload")

    def _write(self, name: str, text: str) -> None:
        """Replace a drop-in. systemd reads that of a unit which it does not know yet by itself, and else is told to."""
        self._dropins.mkdir(mode=0o755, exist_ok=True)
        write(self._dropins / name, text.encode(), mode=0o644)
        if self.show().get("NeedDaemonReload") == "yes":
            self._systemctl("daemon-reload")

    def enabled(self) -> bool | None:
        """See Supervisor.enabled."""
        return self.show().get("UnitFileState") == "enabled"

    def enable(self, wanted: bool) -> None:
        """Have the VM come back with the host, or not."""
        self._systemctl("--no-reload", "enable" if wanted else "disable", self.name)

    def remove(self) -> None:
        """Take back all that was asked of the unit."""
        self.enable(False)
        self.forget()
        self.end_reload()
        if self._dropins.exists():
            shutil.rmtree(self._dropins)
            # systemd forgets a unit that is stopped by itself, unless it has begun with it as one that comes back.
            if self._systemctl("list-units", "--all", "--plain", "--no-legend", self.name).strip():
                self._systemctl("daemon-reload")

    def _systemctl(self, *arguments: str) -> str:
        return self._runner.run(["systemctl", *arguments]).stdout
