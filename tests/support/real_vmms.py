# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The real VMMs that the tests run beside the stand-in.

``MICROVM_REAL_VMMS`` names any number of them, separated by colons, of whatever releases; without it, it is the one on PATH.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pvh_guest
import pytest
from waiting import until


def paths() -> list[str]:
    """Return the real VMMs' paths; the stand-in is none."""
    named = os.environ.get("MICROVM_REAL_VMMS")
    found = named.split(":") if named else [path for path in [shutil.which("cloud-hypervisor")] if path]
    return [path for path in found if "stand-in" not in said(path)]


def parameters() -> list[object]:
    """Return a test's parameters: the stand-in, then each real VMM by its release, or a skipped test where there is none."""
    real: list[object] = [pytest.param(path, id=label(path)) for path in paths()]
    missing = pytest.mark.skip(reason="no cloud-hypervisor is on PATH, and MICROVM_REAL_VMMS names none")
    return [pytest.param("stand-in", id="stand-in"), *(real or [pytest.param("real", id="real", marks=missing)])]


def release(vmm: str) -> tuple[int, int]:
    """Return a VMM's release, such as (53, 0)."""
    found = re.search(r"v(\d+)\.(\d+)", said(vmm))
    assert found, f"{vmm} says {said(vmm)!r}"
    return int(found[1]), int(found[2])


def label(vmm: str) -> str:
    """Return a VMM's release as people write it, such as v53.0."""
    return "v{}.{}".format(*release(vmm))


@functools.cache
def said(vmm: str) -> str:
    """Return what a VMM says of its version."""
    return subprocess.run([vmm, "--version"], capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def why_not(vmm: str) -> str:
    """Return why a real VMM starts no guest on this machine; nothing where it does."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is missing or closed to this user"
    with tempfile.TemporaryDirectory() as directory:
        payload, serial, output = (Path(directory) / name for name in ("guest.elf", "serial", "output"))
        pvh_guest.write(payload)
        argv = [vmm, "--kernel", str(payload), "--serial", f"file={serial}", "--console", "off"]
        with output.open("wb") as printed, subprocess.Popen(argv, stdout=printed, stderr=printed) as process:
            try:
                until("the guest or the VMM's end", lambda: process.poll() is not None or _has_begun(serial))
            finally:
                process.kill()
        return "" if _has_begun(serial) else f"{vmm} starts no guest here: {output.read_text().strip()}"


def _has_begun(serial: Path) -> bool:
    return serial.exists() and pvh_guest.BANNER in serial.read_bytes()
