# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The argument spec of ch_vm, as data: what a record of a VM consists of, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .vm_properties import VM
from .vm_schema import argument_spec

Spec = Mapping[str, Mapping[str, Any]]

_HTTP: Spec = {
    "port": {"type": "int"},
    "path": {"type": "str"},
    "status": {"type": "int"},
    "body": {"type": "str"},
}
_WAIT_FOR: Spec = {
    "timeout": {"type": "int"},
    "api": {"type": "bool"},
    "tap": {"type": "bool"},
    "serial": {"type": "str"},
    "cloud_init": {"type": "bool"},
    "notify": {"type": "bool"},
    "address": {"type": "str"},
    "tcp": {"type": "list", "elements": "int"},
    "http": {"type": "list", "elements": "dict", "options": _HTTP},
}
_LIMIT: Spec = {
    "cpu_quota": {"type": "str"},
    "cpu_weight": {"type": "int"},
    "memory_max": {"type": "str"},
    "io_weight": {"type": "int"},
    "io_read_max": {"type": "str"},
    "io_write_max": {"type": "str"},
    "tasks_max": {"type": "int"},
}
# How a VM is run; what it is comes from the table of its properties.
VM_OPTIONS: Spec = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "running", "paused", "stopped", "restarted", "absent"]},
    "apply": {"type": "str", "choices": ["none", "live", "restart"]},
    "replug": {"type": "bool"},
    "vmm": {"type": "str"},
    "grace": {"type": "int"},
    "boot_timeout": {"type": "int"},
    "wait_for": {"type": "dict", "options": _WAIT_FOR},
    "supervisor": {"type": "str", "choices": ["auto", "systemd", "process"]},
    "unit": {"type": "str"},
    "restart": {"type": "str", "choices": ["no", "on-failure", "always"]},
    "restart_limit": {"type": "dict", "options": {"burst": {"type": "int"}, "seconds": {"type": "int"}}},
    "limits": {"type": "dict", "options": _LIMIT},
    "labels": {"type": "dict"},
    **argument_spec(VM),
}
