# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Print for how long a guest stands still whose disk is copied: all of it while it is paused, or in passes.

Usage: migration.py [MIB...]

The disks are full of random bytes, 1 % of their 256 KiB blocks is written to while the first pass is made. Both ways go
through a process that receives, without ssh, and end with an fsync there. Without the memory, which takes the same in both.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import disk_passes
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.disk_passes import BLOCK_BYTES, Source

_RECEIVE = f"""
import os, sys
from {disk_passes.__name__} import take_passes
with open(0, "rb") as stdin:
    take_passes(stdin.read, lambda data: os.write(1, data), [os.open(sys.argv[1], os.O_RDWR)])
"""


def make(path: Path, mib: int) -> None:
    """Write a disk."""
    with path.open("wb") as file:
        for _number in range(mib):
            file.write(os.urandom(1 << 20))


def write_some(path: Path) -> None:
    """Write to 1 % of a disk's blocks."""
    blocks = path.stat().st_size // BLOCK_BYTES
    with path.open("r+b") as file:
        for block in random.sample(range(blocks), max(1, blocks // 100)):
            file.seek(block * BLOCK_BYTES)
            file.write(os.urandom(4096))


def whole(source: Path, target: Path) -> float:
    """Send it all, as tar does; return the seconds."""
    began = time.monotonic()
    with subprocess.Popen(["tar", "-cSf", "-", "-C", str(source.parent), source.name], stdout=subprocess.PIPE) as tar:
        subprocess.run(["tar", "-xSf", "-", "-C", str(target.parent)], stdin=tar.stdout, check=True)
    subprocess.run(["sync", str(target.parent / source.name)], check=True)
    return time.monotonic() - began


def in_passes(source: Path, target: Path) -> tuple[float, float, int]:
    """Make two passes; return the seconds of each, and the bytes of the second."""
    ours, theirs = socket.socketpair()
    target.touch()
    with subprocess.Popen([sys.executable, "-c", _RECEIVE, str(target)], stdin=theirs, stdout=theirs):
        theirs.close()
        disk = Source(source)
        seconds, sent = [], 0
        for number in range(2):
            began = time.monotonic()
            sent = disk_passes.send_pass([disk], ours.sendall)
            ours.recv(1)
            seconds.append(time.monotonic() - began)
            if number == 0:
                write_some(source)
        ours.sendall(disk_passes.END_OF_PASSES)
        ours.close()
    return seconds[0], seconds[1], sent


def main() -> None:
    """Print the table."""
    sizes = [int(size) for size in sys.argv[1:]] or [256, 1024, 4096]
    print(f"{'disk':>9} {'all, paused':>12} {'first pass':>12} {'paused':>9} {'sent then':>10}")
    for mib in sizes:
        with tempfile.TemporaryDirectory() as name:
            source = Path(name, "disk.raw")
            make(source, mib)
            (Path(name) / "other").mkdir()
            paused = whole(source, Path(name, "other", "disk.raw"))
            first, second, sent = in_passes(source, Path(name, "copy.raw"))
            print(f"{mib:>5} MiB {paused:>10.2f} s {first:>10.2f} s {second:>7.2f} s {sent >> 20:>6} MiB", flush=True)


if __name__ == "__main__":
    main()
