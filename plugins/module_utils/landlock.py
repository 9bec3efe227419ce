# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What Landlock lets a VM's VMM open, derived from the VM's paths.

Facts from Cloud Hypervisor's docs/landlock.md and vmm/src/landlock.rs, and the kernel's userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .vm_access import backing_files
from .vm_paths import Paths

# The VMM wants what came with the third version, and fails where the kernel has less (vmm/src/landlock.rs, ABI).
_NEEDED_ABI = 3
# Its number is the same on all architectures (linux/scripts/syscall.tbl).
_LANDLOCK_CREATE_RULESET = 444
_CREATE_RULESET_VERSION = 1


def available() -> bool:
    """Return whether the kernel has what the VMM wants of Landlock, and lets processes of this host use it."""
    libc = ctypes.CDLL(None)
    return int(libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)) >= _NEEDED_ABI


def restriction(config: Mapping[str, Any], paths: Paths) -> dict[str, Any]:
    """Return what makes the VMM restrict itself to its VM's paths (VmConfig, ``landlock_enable`` and ``landlock_rules``).

    It derives rules from the VmConfig itself, but not for the files that images are based on, nor for the flags of a TAP,
    which it reads in sysfs; nor, before v52.0, for the ptys that each boot opens anew: a guest that reset itself stayed down.
    The other paths are for devices that are added later, and those that the VmConfig has itself stay. It refuses those that
    are missing.
    """
    read = [use.path for use in backing_files(config)]
    read += [Path("/sys/devices/virtual/net"), paths.state_dir / "images"]
    write = [paths.state, paths.run, Path("/dev/net/tun")]
    if any(config.get(port, {}).get("mode") == "Pty" for port in ("serial", "console", "debug_console")):
        write += [Path("/dev/ptmx"), Path("/dev/pts")]
    rules = [*((path, "r") for path in dict.fromkeys(read)), *((path, "rw") for path in write)]
    named = [{"path": str(path), "access": access} for path, access in rules if path.exists()]
    return {"landlock_enable": True, "landlock_rules": [*named, *(config.get("landlock_rules") or ())]}
