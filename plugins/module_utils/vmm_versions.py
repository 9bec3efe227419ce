# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which release of Cloud Hypervisor brings what. Pure, but for asking a binary for its version.

Facts from the API documents of the releases (vmm/src/api/openapi/cloud-hypervisor.yaml in each).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import MicrovmError
from .runner import Runner

OLDEST = (43, 0)
# What v43 lacks, by its place in VmConfig.
_SINCE = {
    "disks.image_type": (51, 0),
    "disks.backing_files": (51, 0),
}
# What these do without the property: the release looks at a disk's first bytes itself, and follows backing files.
_DEFAULTED = frozenset({"disks.image_type", "disks.backing_files"})

Version = tuple[int, int]
# What binaries said, by the file that they were then.
_answers: dict[tuple[str, int, int, int], str] = {}


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
            f"'{vmm}' is Cloud Hypervisor v{version[0]}.{version[1]}; v{OLDEST[0]}.{OLDEST[1]} is the oldest supported",
            option="vmm",
        )
    return version


def _said(runner: Runner, vmm: str) -> str:
    """Return what a binary says of its version, asked once as long as it is the same file, for however many VMs."""
    path = shutil.which(vmm)
    if path is None:
        return runner.run([vmm, "--version"], timeout=10).stdout
    status = os.stat(path)
    identity = (path, status.st_ino, status.st_size, status.st_mtime_ns)
    if identity not in _answers:
        _answers[identity] = runner.run([vmm, "--version"], timeout=10).stdout
    return _answers[identity]


def _places(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Mapping):
                for key in part:
                    yield f"{name}.{key}"


def adapted(config: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """Return the VmConfig for a release, without what it lacks and does of itself.

    Raises MicrovmError, naming the release that brings it, for what it lacks and cannot do.
    """
    lacking = {place for place in _places(config) if version < _SINCE.get(place, OLDEST)}
    for place in sorted(lacking - _DEFAULTED):
        since = _SINCE[place]
        raise MicrovmError(
            f"needs Cloud Hypervisor v{since[0]}.{since[1]}, and v{version[0]}.{version[1]} is installed", option=place
        )
    result: dict[str, Any] = {}
    for name, value in config.items():
        left_out = {place.partition(".")[2] for place in lacking if place.startswith(f"{name}.")}
        if isinstance(value, list):
            result[name] = [{key: part[key] for key in part if key not in left_out} for part in value]
        else:
            result[name] = value
    return result
