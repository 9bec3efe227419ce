# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the options in an entry are those that the modules take, known before anything is made on a host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ..module_utils.vm_options import VM_OPTIONS
from ..modules import ch_disks, ch_lease, ch_nft
from .compose import OPTIONS, ComposeError, Entry

_SPECS: Mapping[str, Mapping[str, Any]] = {
    "ch_lease": ch_lease.VM_OPTIONS,
    "ch_disks": ch_disks.VM_OPTIONS,
    "ch_nft": ch_nft.VM_OPTIONS,
    "ch_vm": VM_OPTIONS,
}


def check(entries: Iterable[Entry]) -> None:
    """Raise ComposeError for an option, however deep in an entry, that its module does not take, or not so.

    A service is left to its module, which keeps what is secret in it out of its messages.
    """
    for entry in entries:
        for module, keys in OPTIONS.items():
            given = {key: entry[key] for key in keys if entry.get(key) is not None}
            result = ArgumentSpecValidator({key: _SPECS[module][key] for key in given}).validate(given)
            if result.error_messages:
                raise ComposeError(f"VM '{entry['name']}': {module} does not take {'; '.join(result.error_messages)}")
