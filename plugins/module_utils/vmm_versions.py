# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which release of Cloud Hypervisor is there, and what a VmConfig is for it."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Mapping
from typing import Any

from . import qemu_img, vm_access, vm_schema
from .errors import MicrovmError
from .runner import Runner
from .vm_config import Spec
from .vm_properties import VM
from .vm_schema import OLDEST, Version, spelled

# The first release that reads a qcow2 image that is based on a raw one; the ones before want qcow2 there, too, and do not
# boot (block/src/qcow/mod.rs).
_RAW_BASES: Version = (51, 0)
# What binaries said, by the file that they were then.
_answers: dict[tuple[str, int, int, int], str] = {}
_asking = threading.Lock()


def parse(text: str) -> Version:
    """Return the version in what ``--version`` or ``vmm.ping`` says, such as "cloud-hypervisor v53.0"."""
    match = re.search(r"v?(\d+)\.(\d+)", text)
    if match is None:
        raise MicrovmError(f"{text.strip()!r} tells no version of Cloud Hypervisor", option="vmm")
    return int(match[1]), int(match[2])


def installed(runner: Runner, vmm: str) -> Version:
    """Return the version of a binary; raise MicrovmError where it is missing or older than the oldest supported."""
    version = parse(_said(runner, vmm))
    if version < OLDEST:
        raise MicrovmError(
            f"'{vmm}' is Cloud Hypervisor {spelled(version)}; {spelled(OLDEST)} is the oldest supported", option="vmm"
        )
    return version


def _said(runner: Runner, vmm: str) -> str:
    """Return what a binary says of its version, asked once as long as it is the same file, for however many VMs."""
    path = shutil.which(vmm)
    if path is None:
        raise MicrovmError(
            f"'{vmm}' is not installed on this host; have the role host install it, by host_vmm, or give its path",
            option="vmm",
        )
    status = os.stat(path)
    identity = (path, status.st_ino, status.st_size, status.st_mtime_ns)
    # All workers begin with this question.
    with _asking:
        if identity not in _answers:
            _answers[identity] = runner.run([vmm, "--version"], timeout=10).stdout
        return _answers[identity]


def adapted(config: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """Return the VmConfig for a release, without what it lacks and does of itself.

    Raises MicrovmError, naming the release that brings it, for what it lacks and cannot do.
    """
    return vm_schema.adapted(VM, config, version)


def check(spec: Spec, version: Version) -> None:
    """Raise MicrovmError, naming the release that brings it, for anything of a VM that a release lacks.

    The images that its disks are based on are looked at, where they are there.
    """
    adapted(spec.config, version)
    for use in vm_access.backing_files(spec.config) if version < _RAW_BASES else ():
        if use.path.exists() and not qemu_img.is_qcow2(use.path):
            raise MicrovmError(
                f"the image is based on '{use.path}', which is a raw one: that needs Cloud Hypervisor {spelled(_RAW_BASES)} "
                f"or later, and this is {spelled(version)}; give the disk an image of its own, as ch_disks makes with "
                "root.mode: copy or reflink",
                option=use.option,
            )
