# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Print how long a service disk of a 100 MB binary and 200 key files takes, beside copying the same bytes.

Usage: service_disk.py [RUNS]

The ways take turns, so that a change of the machine's speed meets all of them. Each ends with an fsync of what it wrote.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pyfatfs.PyFatFS import PyFatFS

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import fat32
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.fat32 import File

BINARY = 100_000_000
KEYS = 200


def make_source(source: Path) -> None:
    """Write the files that the disk is made of."""
    (source / "keystore").mkdir(parents=True)
    (source / "service").write_bytes(os.urandom(BINARY))
    for number in range(KEYS):
        (source / "keystore" / f"validator-key-{number:03}.json").write_bytes(os.urandom(1200))


def sync(path: Path) -> None:
    """Have a file's, or a file system's, content on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def ours(source: Path, target: Path) -> None:
    """Our writer, as ch_disks calls it, which syncs by itself."""
    tree = {"service": File(source / "service", BINARY), "keystore": fat32.read_tree(source / "keystore")}
    fat32.write(fat32.build(tree, label="SERVICEDISK"), target / "image")


def copied(source: Path, target: Path) -> None:
    """The same bytes, as plain files."""
    subprocess.run(["cp", "-r", str(source), str(target / "copy")], check=True)
    for path in (target / "copy").rglob("*"):
        if path.is_file():
            sync(path)


def make_file_system(target: Path) -> Path:
    """Make an empty FAT32 image with mkfs.vfat, which pyfatfs's own mkfs does not make so that it can be opened again."""
    image = target / "image"
    image.touch()
    os.truncate(image, 160 << 20)
    subprocess.run(
        ["mkfs.vfat", "-F", "32", "-s", "1", "-n", "SERVICEDISK", str(image)], check=True, capture_output=True
    )
    return image


def with_mtools(source: Path, target: Path) -> None:
    """mcopy into an image of mkfs.vfat."""
    image = target / "image"
    image.touch()
    os.truncate(image, 160 << 20)
    subprocess.run(
        ["mkfs.vfat", "-F", "32", "-s", "1", "-n", "SERVICEDISK", str(image)], check=True, capture_output=True
    )
    argv = ["mcopy", "-s", "-i", str(image), str(source / "service"), str(source / "keystore"), "::/"]
    subprocess.run(argv, check=True)
    sync(image)


def with_pyfatfs(source: Path, target: Path) -> None:
    """pyfatfs."""
    image = make_file_system(target)
    with PyFatFS(str(image)) as filesystem:
        filesystem.makedir("/keystore")
        filesystem.writebytes("/service", (source / "service").read_bytes())
        for key in (source / "keystore").iterdir():
            filesystem.writebytes(f"/keystore/{key.name}", key.read_bytes())
    sync(image)


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    ways: dict[str, Callable[[Path, Path], None]] = {
        "cp of the same bytes": copied,
        "our writer": ours,
        "mkfs.vfat + mtools": with_mtools,
        "pyfatfs": with_pyfatfs,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "source")
        make_source(source)
        for run in range(runs):
            for name, way in ways.items():
                if name == "pyfatfs" and run:
                    continue  # once says enough
                with tempfile.TemporaryDirectory(dir=directory) as target:
                    start = time.perf_counter()
                    way(source, Path(target))
                    seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["cp of the same bytes"])
    print(f"{BINARY / 1e6:g} MB and {KEYS} keys     median s     min s     max s   ratio to cp")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:<22} {median:>11.3f} {min(times):>9.3f} {max(times):>9.3f} {median / base:>13.2f}")


if __name__ == "__main__":
    main()
