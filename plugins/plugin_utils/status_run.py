# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Asking the hosts for their VMs: Ansible itself does it, with the playbook status, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..module_utils.errors import MicrovmError

# Set for the process that asks, whose inventory may hold the very file that has it ask.
ASKING = "MICROVM_INVENTORY_ASKING"
_LINES_SHOWN = 15


def ask(
    sources: Sequence[str], pattern: str, *, forks: int, timeout: float, arguments: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what the playbook status writes of the hosts that match ``pattern`` in the inventory ``sources``.

    A process of its own, since an inventory is also read in the midst of a run (``meta: refresh_inventory``), where the
    machinery that connects to hosts is in use. ``timeout`` is in seconds; ``arguments`` go to ansible-playbook as they
    are. Raises MicrovmError where nothing was written, with the last lines that were printed.
    """
    with tempfile.TemporaryDirectory(prefix="microvm-status-") as directory:
        status_file = Path(directory) / "status.json"
        variables = json.dumps({"target": pattern, "status_file": str(status_file)})
        argv = [sys.executable, "-m", "ansible", "playbook", "microvm.cloud_hypervisor.status"]
        argv += [argument for source in sources for argument in ("--inventory", source)]
        argv += ["--forks", str(forks), *arguments, "--extra-vars", variables]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
                env={**os.environ, ASKING: "1", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"},
            )
        except subprocess.TimeoutExpired as error:
            raise MicrovmError(f"the hosts were not asked within {timeout:g} seconds", option="timeout") from error
        # A host that does not answer makes the playbook fail, with the file written all the same.
        if not status_file.exists():
            shown = " / ".join(done.stdout.strip().splitlines()[-_LINES_SHOWN:])
            raise MicrovmError(f"no host matching '{pattern}' in {', '.join(sources)} could be asked: {shown}")
        return read(status_file)


def being_asked() -> bool:
    """Return whether this process is the one that asks, which takes the hosts from elsewhere in its inventory."""
    return ASKING in os.environ


def vault_arguments(given: Mapping[str, Any]) -> list[str]:
    """Return the arguments that open the vaults which this run opens; those it was told by hand are not known here.

    ``given`` are the arguments of this run, as Ansible keeps them.
    """
    ids = [text for text in given.get("vault_ids") or () if not text.endswith("@prompt")]
    files = given.get("vault_password_files") or ()
    return [
        *(argument for text in ids for argument in ("--vault-id", text)),
        *(argument for text in files for argument in ("--vault-password-file", text)),
    ]


def read(path: Path) -> dict[str, Any]:
    """Return what the playbook status wrote to ``path``. Raises MicrovmError for anything else."""
    try:
        status = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MicrovmError(f"'{path}' cannot be read: {error}", option="status_file") from error
    if not isinstance(status, dict) or not isinstance(status.get("hosts"), dict):
        raise MicrovmError(
            f"'{path}' is not what the playbook microvm.cloud_hypervisor.status writes", option="status_file"
        )
    return status
