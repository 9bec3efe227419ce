# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps of a migration between two hosts, in the order in which libvirt has them: begin, prepare, perform, finish, confirm.

Each is run on one of the hosts: ``offered``, ``sent`` and ``left`` on the one that the VM leaves, ``ready`` and ``arrived`` on the
other one. Where one fails, ``abandoned`` there and ``stayed`` here make it as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import vm_receive, vm_send
from .bulk import Outcome
from .errors import MicrovmError
from .files import locked_directory
from .names import check_vm_name
from .runner import Runner
from .vm_state import Vm

STEPS: Mapping[str, Callable[..., Outcome]] = {
    "offered": vm_send.offer,
    "ready": vm_receive.make_ready,
    "sent": vm_send.send,
    "arrived": vm_receive.arrive,
    "left": vm_send.leave,
    "abandoned": vm_receive.abandon,
    "stayed": vm_send.stay,
}


def ensure(
    item: Mapping[str, Any], *, state_dir: Path, run_dir: Path, runner: Runner, check_mode: bool = False
) -> Outcome:
    """Do one VM's step. Raises MicrovmError."""
    state = item.get("state")
    if state is None:
        raise MicrovmError(f"is missing: one of {', '.join(STEPS)}", option="state")
    vm = Vm.of(
        check_vm_name(item["name"]),
        state_dir=state_dir,
        run_dir=run_dir,
        runner=runner,
        supervisor=item.get("supervisor"),
        unit=item.get("unit"),
    )
    with locked_directory(vm.paths.state, make=state == "ready" and not check_mode, mode=0o700):
        try:
            return STEPS[state](vm, item, check_mode=check_mode)
        finally:
            with suppress(OSError):  # it is somebody's
                vm.paths.state.rmdir()
