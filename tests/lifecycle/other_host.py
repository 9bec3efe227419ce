# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A second host on this machine: namespaces in which the same paths lead elsewhere, and a network of its own."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from waiting import until

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

MODULE_UTILS = "ansible_collections.microvm.cloud_hypervisor.plugins.module_utils"
# Runs one call there: a function's name and its arguments come as JSON, the facts or the error go as JSON.
_CALL = f"""
import importlib, json, sys
from pathlib import Path
from {MODULE_UTILS}.errors import MicrovmError
from {MODULE_UTILS}.runner import HostRunner
asked = json.load(sys.stdin)
function = getattr(importlib.import_module("{MODULE_UTILS}." + asked["module"]), asked["function"])
places = {{"state_dir": Path(asked["state_dir"]), "run_dir": Path(asked["run_dir"]), "runner": HostRunner()}}
try:
    outcome = function(asked["item"], **places)
    print(json.dumps({{"facts": outcome.facts, "changed": outcome.changed}}))
except MicrovmError as error:
    print(json.dumps({{"error": str(error)}}))
"""


class OtherHost:
    """Shares nothing of ``state_dir`` and ``run_dir`` with this host but their names."""

    def __init__(self, root: Path, state_dir: Path, run_dir: Path) -> None:
        self.state_dir, self.run_dir = state_dir, run_dir
        binds = ""
        for path in (state_dir, run_dir):
            (root / path.name).mkdir(parents=True)
            path.mkdir(parents=True, exist_ok=True)
            binds += f"mount --bind {shlex.quote(str(root / path.name))} {shlex.quote(str(path))} && "
        script = f"mount --make-rprivate / && mount -t sysfs sysfs /sys && {binds} touch {shlex.quote(str(root))}/up && exec sleep 600"
        self._process = subprocess.Popen(["unshare", "--mount", "--net", "/bin/sh", "-c", script])
        until("the other host", (root / "up").exists)
        self.enter = ["nsenter", f"--target={self._process.pid}", "--mount", "--net", "--"]

    def call(self, module: str, function: str, **item: Any) -> dict[str, Any]:
        """Call a function there that takes an item as the modules do; return the facts, or raise its MicrovmError."""
        asked = {"module": module, "function": function, "item": item}
        asked |= {"state_dir": str(self.state_dir), "run_dir": str(self.run_dir)}
        done = subprocess.run(
            [*self.enter, sys.executable, "-c", _CALL],
            input=json.dumps(asked),
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        if "error" in answer:
            raise MicrovmError(answer["error"])
        return dict(answer["facts"])

    def receive(self, name: str, word: str = "guest") -> list[str]:
        """Return what sshd would run there for a migration's key."""
        command = f"from {MODULE_UTILS}.microvm_command import main; import sys; sys.exit(main(sys.argv[1:]))"
        places = ["--state-dir", str(self.state_dir), "--run-dir", str(self.run_dir)]
        environment = ["env", f"SSH_ORIGINAL_COMMAND={word}"]
        return [*self.enter, *environment, sys.executable, "-c", command, *places, "receive", name]

    def sees(self, path: Path) -> bool:
        """Whether a path is there."""
        return subprocess.run([*self.enter, "test", "-e", str(path)], check=False).returncode == 0

    def pid(self, name: str) -> int:
        """Return the process id of a VM's VMM there, which is the same here."""
        shown = subprocess.run([*self.enter, "cat", f"{self.run_dir}/{name}/vmm.pid"], capture_output=True, check=True)
        return int(json.loads(shown.stdout)["pid"])

    def close(self) -> None:
        """End it; nothing of it is left."""
        for name in self.call_names():
            self.call("vm_migrate", "ensure", name=name, state="abandoned")
            self.call("vm_lifecycle", "ensure", name=name, state="absent", grace=0)
        self._process.kill()
        self._process.wait()

    def call_names(self) -> list[str]:
        """List the VMs on record there."""
        listed = subprocess.run(
            [*self.enter, "ls", f"{self.state_dir}/vms"], capture_output=True, text=True, check=False
        )
        return [name for name in listed.stdout.split() if self.sees(self.state_dir / "vms" / name / "vm.json")]
