# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Build a small Linux guest from the distribution's packages: its kernel, and an initramfs of busybox and modules.

Usage: build.py OUTPUT_DIRECTORY

Writes vmlinuz, initramfs and root.raw, in seconds; does nothing where they were built of the same packages already.
What the guest does is in ``init`` beside this file.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
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
]
# By distribution: the package that depends on the newest kernel's.
KERNELS = {"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"}
ROOT_SIZE = 8 << 20


def run(*argv: str, cwd: Path | None = None, stdin: bytes | None = None) -> bytes:
    """Run a command and return what it printed; show why where it failed."""
    done = subprocess.run(argv, cwd=cwd, input=stdin, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)} failed: {done.stderr.decode()}")
    return done.stdout


def kernel_packages() -> list[str]:
    """Return the names of the packages that hold the newest kernel and its modules."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    meta = KERNELS.get(release["ID"])
    if meta is None:
        raise SystemExit(f"{release['ID']} is not known to this builder; known are {', '.join(KERNELS)}")
    depends = run("apt-cache", "depends", "--no-suggests", "--no-recommends", meta).decode()
    images = re.findall(r"Depends: (linux-image-\d\S*)", depends)
    if not images:
        raise SystemExit(f"{meta} depends on no kernel; run apt-get update")
    # Ubuntu's modules have a package of their own.
    return images + [name.replace("image", "modules", 1) for name in images if release["ID"] == "ubuntu"]


def unpack(packages: list[str], directory: Path) -> None:
    """Fetch packages and unpack them into a directory; nothing is installed."""
    with tempfile.TemporaryDirectory() as fetched:
        run("apt-get", "download", "--quiet=2", "-o", "APT::Sandbox::User=root", *packages, cwd=Path(fetched))
        for package in Path(fetched).glob("*.deb"):
            run("dpkg-deb", "--extract", str(package), str(directory))


def modules_in_order(directory: Path, release: str) -> list[Path]:
    """Return the modules that are wanted and those they depend on, so that each comes after what it needs."""
    # Newer distributions have /lib as a link to /usr/lib.
    library = next(place for place in (directory / "lib/modules", directory / "usr/lib/modules") if place.exists())
    run("depmod", "--basedir", str(library.parents[1]), release)
    depends: dict[Path, list[Path]] = {}
    for line in (library / release / "modules.dep").read_text().splitlines():
        module, _colon, needed = line.partition(":")
        depends[Path(module)] = [Path(name) for name in needed.split()]
    by_name = {module.name.split(".")[0].replace("-", "_"): module for module in depends}
    order: list[Path] = []
    for name in MODULES:
        module = by_name.get(name.replace("-", "_"))
        if module is not None:  # else it is built in
            order += [needed for needed in (*reversed(depends[module]), module) if needed not in order]
    return [library / release / module for module in order]


def plain(module: Path) -> bytes:
    """Return a module's content, unpacked where the distribution has it packed."""
    tools = {".xz": "xz", ".zst": "zstd", ".gz": "gzip"}
    tool = tools.get(module.suffix)
    return run(tool, "--decompress", "--stdout", str(module)) if tool else module.read_bytes()


def build_initramfs(tree: Path, modules: list[Path]) -> bytes:
    """Return the initramfs: busybox, the modules in the order of their names, and init."""
    for directory in ("bin", "dev", "etc/acpi/PWRF", "lib/modules", "mnt/data", "proc", "run", "srv", "sys", "tmp"):
        (tree / directory).mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    for number, module in enumerate(modules):
        (tree / "lib/modules" / f"{number:02}-{module.name.split('.')[0]}.ko").write_bytes(plain(module))
    for name, target in (("init", "init"), ("power-button", "etc/acpi/PWRF/00000080")):
        shutil.copy(HERE / name, tree / target)
        (tree / target).chmod(0o755)
    files = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    archive = run(
        "cpio", "--create", "--format=newc", "--quiet", "--owner=0:0", cwd=tree, stdin="\n".join(files).encode()
    )
    return gzip.compress(archive, compresslevel=6, mtime=0)


def main() -> None:
    """Build into the directory that the command line names."""
    output = Path(sys.argv[1])
    output.mkdir(parents=True, exist_ok=True)
    packages = kernel_packages()
    own = b"".join((HERE / name).read_bytes() for name in ("build.py", "init", "power-button"))
    stamp = f"{' '.join(packages)} {hashlib.sha256(own + BUSYBOX.read_bytes()).hexdigest()}\n"
    if (output / "stamp").exists() and (output / "stamp").read_text() == stamp:
        return
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        unpacked, tree = Path(scratch, "packages"), Path(scratch, "tree")
        unpacked.mkdir()
        unpack(packages, unpacked)
        kernel = next((unpacked / "boot").glob("vmlinuz-*"))
        initramfs = build_initramfs(tree, modules_in_order(unpacked, kernel.name.removeprefix("vmlinuz-")))
        (Path(scratch) / "initramfs").write_bytes(initramfs)
        (Path(scratch) / "root.raw").touch()
        os.truncate(Path(scratch) / "root.raw", ROOT_SIZE)
        shutil.copy(kernel, Path(scratch) / "vmlinuz")
        for name in ("vmlinuz", "initramfs", "root.raw"):
            (Path(scratch) / name).replace(output / name)
    (output / "stamp").write_text(stamp)


if __name__ == "__main__":
    main()
