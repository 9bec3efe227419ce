# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Build a small Linux guest from the distribution's packages: its kernel, and an initramfs of busybox and modules.

Usage: build.py OUTPUT_DIRECTORY

Writes vmlinuz, initramfs and root.raw, in seconds; does nothing where they were built of the same packages already.
What the guest does is in ``init`` beside this file.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from guest_build import KERNELS, digest, distribution, initramfs, modules_in_order, run

BUSYBOX = Path("/bin/busybox")
# In the order in which init loads them; what they depend on goes before.
MODULES = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_console",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_utf8",
    "nls_iso8859-1",
    "ext4",
    "button",
    "evdev",
    "vmw_vsock_virtio_transport",
]
ROOT_SIZE = 8 << 20


def kernel_packages() -> list[str]:
    """Return the names of the packages that hold the newest kernel and its modules."""
    name, _release = distribution()
    depends = run("apt-cache", "depends", "--no-suggests", "--no-recommends", KERNELS[name]).decode()
    images = re.findall(r"Depends: (linux-image-\d\S*)", depends)
    if not images:
        raise SystemExit(f"{KERNELS[name]} depends on no kernel; run apt-get update")
    # Ubuntu's modules have a package of their own.
    return images + [image.replace("image", "modules", 1) for image in images if name == "ubuntu"]


def unpack(packages: list[str], directory: Path) -> None:
    """Fetch packages and unpack them into a directory; nothing is installed."""
    with tempfile.TemporaryDirectory() as fetched:
        run("apt-get", "download", "--quiet=2", "-o", "APT::Sandbox::User=root", *packages, cwd=Path(fetched))
        for package in Path(fetched).glob("*.deb"):
            run("dpkg-deb", "--extract", str(package), str(directory))


def build_initramfs(tree: Path, modules: list[Path]) -> bytes:
    """Return the initramfs: busybox, the modules in the order of their names, and init."""
    for directory in ("bin", "dev", "etc/acpi/PWRF", "mnt/data", "proc", "run", "srv", "sys", "tmp"):
        (tree / directory).mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    for name, target in (("init", "init"), ("power-button", "etc/acpi/PWRF/00000080")):
        shutil.copy(HERE / name, tree / target)
        (tree / target).chmod(0o755)
    return initramfs(tree, modules)


def main() -> None:
    """Build into the directory that the command line names."""
    output = Path(sys.argv[1])
    output.mkdir(parents=True, exist_ok=True)
    packages = kernel_packages()
    own = [HERE / name for name in ("build.py", "init", "power-button")]
    stamp = f"{' '.join(packages)} {digest([*own, BUSYBOX])}\n"
    if (output / "stamp").exists() and (output / "stamp").read_text() == stamp:
        return
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        unpacked, tree = Path(scratch, "packages"), Path(scratch, "tree")
        unpacked.mkdir()
        unpack(packages, unpacked)
        kernel = next((unpacked / "boot").glob("vmlinuz-*"))
        modules = modules_in_order(unpacked, kernel.name.removeprefix("vmlinuz-"), MODULES)
        (Path(scratch) / "initramfs").write_bytes(build_initramfs(tree, modules))
        (Path(scratch) / "root.raw").touch()
        os.truncate(Path(scratch) / "root.raw", ROOT_SIZE)
        shutil.copy(kernel, Path(scratch) / "vmlinuz")
        for name in ("vmlinuz", "initramfs", "root.raw"):
            (Path(scratch) / name).replace(output / name)
    (output / "stamp").write_text(stamp)


if __name__ == "__main__":
    main()
