# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Print the path of the VMM for this machine's guests: the real one where it boots Linux, else the stand-in.

Usage: choose_vmm.py SMALL_GUEST_DIRECTORY

Whether a ``cloud-hypervisor`` on PATH boots a Linux guest is tried, not guessed: a machine can have the binary without
/dev/kvm, or a /dev/kvm on which Linux does not start. Which one was chosen, and why, goes to standard error.
``MICROVM_VMM`` overrides the choice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAND_IN = Path(__file__).parent / "qemu_vmm" / "cloud-hypervisor"
# What the small guest's init prints on the serial console once it runs.
MARK = b"small-guest: "
SECONDS = 20


def boots_linux(vmm: str, guest: Path) -> bool:
    """Return whether ``vmm`` brings the small guest to its init within SECONDS."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "serial.log"
        argv = [vmm, "--kernel", f"{guest}/vmlinuz", "--initramfs", f"{guest}/initramfs", "--memory", "size=256M"]
        argv += ["--cmdline", "console=ttyS0 quiet", "--serial", f"file={log}", "--console", "off"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline and process.poll() is None:
                if log.exists() and MARK in log.read_bytes():
                    return True
                time.sleep(0.2)
            return False
        finally:
            process.kill()
            process.wait()


def choose(guest: Path) -> tuple[str, str]:
    """Return the VMM's path and the reason for it."""
    if wanted := os.environ.get("MICROVM_VMM"):
        return wanted, "MICROVM_VMM says so"
    real = shutil.which("cloud-hypervisor")
    if real is None:
        return str(STAND_IN), "no cloud-hypervisor is on PATH"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return str(STAND_IN), "/dev/kvm is missing or closed to this user"
    if boots_linux(real, guest):
        return real, "it boots Linux here"
    return str(STAND_IN), f"{real} does not boot Linux here within {SECONDS} seconds"


def main() -> None:
    """Print the choice."""
    vmm, reason = choose(Path(sys.argv[1]))
    print(f"VMM: {vmm} ({reason})", file=sys.stderr)
    print(vmm)


if __name__ == "__main__":
    main()
