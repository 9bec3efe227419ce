# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Build a cloud image from the distribution's packages, as a distributor would ship one.

Usage: build.py OUTPUT_DIRECTORY [SUITE]

Writes disk.qcow2 (partitioned as Ubuntu's are: the root is the first partition and lies last), vmlinuz, initrd and tree/,
what the disk was made of: there are the guest's own cloud-init and netplan for the tests. Takes about a minute and a
half; does nothing where the same was built already. The suite is this machine's where none is given. Nothing of the
collection goes into the guest.

What makes it quick under emulation is in ``image/`` and ``MASKED``: fewer cloud-init modules and one data source, no
timers and gettys, one kind of host key; and an initrd of busybox that loads virtio's drivers and mounts the root.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from guest_build import KERNELS, digest, distribution, initramfs, modules_in_order, run

PACKAGES = [
    "busybox-static",
    "cloud-guest-utils",
    "cloud-init",
    "dbus",
    "e2fsprogs",
    "fdisk",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "netplan.io",
    "openssh-server",
    "sudo",
    "systemd-sysv",
    "udev",
]
# Where a distribution keeps the list of its own package sources.
SOURCES = [
    "/etc/apt/sources.list.d/debian.sources",
    "/etc/apt/sources.list.d/ubuntu.sources",
    "/etc/apt/sources.list",
]
# Without documents and translations the file system is made in half the time.
UNWANTED = ["usr/share/doc/*", "usr/share/locale/*", "usr/share/man/*", "usr/share/i18n/locales/*"]
MASKED = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "cloud-init-hotplugd.socket",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "ldconfig.service",
    "systemd-binfmt.service",
    "systemd-pstore.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
]
MASKED_GENERATORS = [
    "systemd-cryptsetup-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-rc-local-generator",
    "systemd-sysv-generator",
    "systemd-veritysetup-generator",
]
# A package for the guest to install, from a repository of its own: guests in tests have no way out.
REPOSITORY = "usr/local/share/packages"
PACKAGE = """\
Package: hello-microvm
Version: 1.0
Architecture: all
Maintainer: The microvm.cloud_hypervisor developers
Description: something to install
"""
SECTOR = 512
# The EFI system partition, then the root; the label's second copy is in the last MiB.
ESP_START, ROOT_START, END = 1 << 20, 17 << 20, 1 << 30
MIB = 1 << 20


def bootstrap(tree: Path, name: str, suite: str, sources: list[str]) -> None:
    """Install the distribution into a directory, as root."""
    # The initrd that the kernel's package makes is not what we boot, so the quickest will do.
    hook = "mkdir -p $1/etc/initramfs-tools/conf.d && echo MODULES=list >$1/etc/initramfs-tools/conf.d/list"
    run(
        *("mmdebstrap", "--quiet", "--variant=minbase", "--aptopt=APT::Install-Recommends false"),
        *(f"--dpkgopt=path-exclude=/{pattern}" for pattern in UNWANTED),
        *(f"--setup-hook={hook}", f"--include={','.join([*PACKAGES, KERNELS[name]])}", suite, tree, *sources),
    )


def configure(tree: Path) -> None:
    """Make an image of an installation: what differs between machines goes, what costs time is turned off."""
    for pattern in (
        "etc/ssh/ssh_host_*",
        "etc/hostname",
        "etc/resolv.conf",
        "etc/apt/sources.list.d/*",
        "boot/initrd*",
        "initrd*",
    ):
        for path in tree.glob(pattern):
            path.unlink()
    shutil.copytree(HERE / "image", tree, dirs_exist_ok=True)
    for directory, names in (("etc/systemd/system", MASKED), ("etc/systemd/system-generators", MASKED_GENERATORS)):
        (tree / directory).mkdir(parents=True, exist_ok=True)
        for name in names:
            (tree / directory / name).symlink_to("/dev/null")
    run("chroot", tree, "systemctl", "enable", "systemd-networkd.service", "ssh.service")


def add_repository(tree: Path) -> None:
    """Put a repository with one package into the guest, of which its sources.list knows."""
    repository = tree / REPOSITORY
    (repository / "hello/DEBIAN").mkdir(parents=True)
    (repository / "hello/DEBIAN/control").write_text(PACKAGE)
    run("dpkg-deb", "--root-owner-group", "--build", repository / "hello", repository / "hello.deb")
    shutil.rmtree(repository / "hello")
    content = (repository / "hello.deb").read_bytes()
    about = f"Filename: ./hello.deb\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
    (repository / "Packages").write_text(PACKAGE + about)


def make_initrd(tree: Path, kernel: str) -> bytes:
    """Return an initrd of the tree's own busybox and modules, and init."""
    with tempfile.TemporaryDirectory() as directory:
        content = Path(directory)
        for name in ("bin", "dev", "proc", "root", "sys"):
            (content / name).mkdir()
        shutil.copy(tree / "usr/bin/busybox", content / "bin/busybox")
        (content / "bin/sh").symlink_to("busybox")
        shutil.copy(HERE / "init", content / "init")
        (content / "init").chmod(0o755)
        return initramfs(content, modules_in_order(tree, kernel, ["virtio_pci", "virtio_blk", "ext4"]))


def make_disk(tree: Path, disk: Path) -> None:
    """Write a qcow2 image with the tree in its root partition."""
    raw = disk.with_suffix(".raw")
    table = [
        "label: gpt",
        f"{raw}15: start={ESP_START // SECTOR}, size={(ROOT_START - ESP_START) // SECTOR}, type=uefi",
        f"{raw}1: start={ROOT_START // SECTOR}, size={(END - ROOT_START) // SECTOR}, type=linux",
    ]
    with raw.open("wb") as file:
        file.truncate(END + MIB)
    run("sfdisk", "--quiet", raw, stdin="\n".join([*table, ""]).encode())
    offset, size = f"offset={ROOT_START}", f"{(END - ROOT_START) // 1024}k"
    run("mkfs.ext4", "-q", "-F", "-L", "cloudimg-rootfs", "-E", offset, "-d", tree, raw, size)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk)
    raw.unlink()


def build(output: Path, name: str, suite: str, sources: list[str]) -> None:
    """Fill an empty directory."""
    tree = output / "tree"
    bootstrap(tree, name, suite, sources)
    configure(tree)
    add_repository(tree)
    kernel = next((tree / "boot").glob("vmlinuz-*"))
    shutil.copy(kernel, output / "vmlinuz")
    (output / "initrd").write_bytes(make_initrd(tree, kernel.name.removeprefix("vmlinuz-")))
    make_disk(tree, output / "disk.qcow2")


def main() -> None:
    """Build what the command line asks for, unless it is there."""
    name, own_suite = distribution()
    output = Path(sys.argv[1]).absolute()
    suite = sys.argv[2] if len(sys.argv) > 2 else own_suite
    # Another suite than this machine's comes from the distribution's usual place.
    sources = [path for path in SOURCES if Path(path).exists()][:1] if suite == own_suite else []
    files = sorted(path for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    stamp = f"{name} {suite} {digest(files)}\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{output}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (output / "stamp").exists() and (output / "stamp").read_text() == stamp:
            return
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            new = Path(scratch, "new")
            new.mkdir()
            build(new, name, suite, sources)
            (new / "stamp").write_text(stamp)
            if output.exists():
                output.rename(Path(scratch, "old"))
            new.rename(output)


if __name__ == "__main__":
    main()
