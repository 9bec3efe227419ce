# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Many VMs in one call, each by way of its VMM: the options that such a call has beside the VMs' own, and its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from . import vmm_api
from .bulk import Outcome, report, requested, run_each
from .runner import HostRunner

_OF_THE_CALL = {
    "workers": {"type": "int", "default": 8},
    "state_dir": {"type": "path", "default": "/var/lib/microvm"},
    "run_dir": {"type": "path", "default": "/run/microvm"},
}


def argument_spec(vm_options: Mapping[str, Any], **call_options: Any) -> dict[str, Any]:
    """Return the argument spec of a module that takes ``vm_options`` for one VM or for each of a list."""
    vms = {"type": "list", "elements": "dict", "options": vm_options}
    return {**vm_options, "vms": vms, **_OF_THE_CALL, **call_options}


def items(params: Mapping[str, Any], *shared: str) -> list[dict[str, Any]]:
    """Return the options of each VM, as ``bulk.requested``; ``shared`` are the call's own options beside the usual ones.

    Raises MicrovmError where the library is missing by which VMMs are asked, too.
    """
    vmm_api.require_library()
    return requested(params, shared=[*_OF_THE_CALL, *shared])


def places(params: Mapping[str, Any]) -> tuple[Path, Path]:
    """Return the directories that all VMs' are in: ``state_dir`` and ``run_dir``."""
    return Path(params["state_dir"]), Path(params["run_dir"])


def run(params: Mapping[str, Any], ensure: Callable[..., Outcome], *, check_mode: bool) -> dict[str, Any]:
    """Do for each VM what its options say, and return what the module exits with. Raises MicrovmError as ``items`` does."""
    state_dir, run_dir = places(params)
    work = partial(ensure, state_dir=state_dir, run_dir=run_dir, runner=HostRunner(), check_mode=check_mode)
    return report(run_each(items(params), work, workers=params["workers"]))
