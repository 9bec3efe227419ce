# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a VM needs on the host before its VMM starts: its user, its files, its TAPs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import tap, vm_access, vm_user
from .errors import MicrovmError
from .files import is_own
from .vm_config import Spec
from .vm_state import Vm

# As ch_nft has them.
_RULESET = "nftables/cloud_hypervisor.nft"
_TABLE = "table inet cloud_hypervisor"


def prepare(vm: Vm, spec: Spec) -> list[str]:
    """Make what is missing; return the names of the TAPs that were made, which are gone again where this fails."""
    owner = None
    if vm.supervisor.unprivileged:
        user = vm_user.ensure(vm.paths.name, vm.runner)
        vm_access.hand_over(spec.config, vm.paths, user, vm.runner)
        owner = user.uid
    else:
        if not is_own(vm.paths.run):  # a unit's VMM had it
            shutil.rmtree(vm.paths.run, ignore_errors=True)
        vm.paths.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    made: list[str] = []
    try:
        for wanted in spec.taps:
            tap.missing(vm.runner, wanted)
            if tap.ensure(vm.runner, replace(wanted, owner=owner)):
                made.append(wanted.name)
    except BaseException:
        for name in made:
            tap.remove(vm.runner, name)
        raise
    return made


def require_rules(vm: Vm, spec: Spec) -> None:
    """Raise MicrovmError where the host's firewall is on record and not loaded: a VM does not run without its isolation."""
    ruleset = vm.paths.state_dir / _RULESET
    if spec.taps and ruleset.exists() and _TABLE not in vm.runner.run(["nft", "list", "tables"]).stdout.splitlines():
        raise MicrovmError(
            f"the rules that isolate VMs are not loaded; load them with 'nft -f {ruleset}'", option="nets"
        )


def require_backends(config: Mapping[str, Any]) -> None:
    """Raise MicrovmError for a device whose backend does not listen, which the VMM would find when it boots."""
    for use in vm_access.sockets(config):
        if not use.path.is_socket():
            raise MicrovmError(
                f"'{use.path}' is no socket; start the backend that serves the device there before", option=use.option
            )


def binary(spec: Spec) -> str:
    """Return the path of the VMM. Raises MicrovmError where there is none."""
    path = shutil.which(spec.vmm)
    if path is None:
        raise MicrovmError(f"'{spec.vmm}' is not there, or cannot be run", option="vmm")
    return path


def arguments(vm: Vm, spec: Spec) -> list[str]:
    """Return the VMM's argument vector."""
    sockets = ["--api-socket", f"path={vm.paths.api_socket}", "--event-monitor", f"path={vm.paths.event_log}"]
    return [binary(spec), *sockets]
