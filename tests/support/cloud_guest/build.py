# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Build a cloud-init guest from the distribution's packages, as a distributor would ship one.

Usage: build.py OUTPUT_DIRECTORY [SUITE]

Writes disk.qcow2 (a file system without a partition table), vmlinuz, initrd and tree/, what the disk was made of: there
are the guest's own cloud-init and netplan for the tests. Takes about a minute and a half; does nothing where the same
was built already. The suite is this machine's where none is given. Nothing of the collection goes into the guest.

What makes it quick under emulation (each measured) is in ``image/``: fewer cloud-init modules and one data source, no
timers and gettys, one kind of host key; and an initrd of busybox that loads virtio's drivers and mounts the root.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = [
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "dbus",
    "dosfstools",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "netplan.io",
    "openssh-server",
    "python3",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
]
# By distribution: the kernel, and where the list of its own package sources is.
KERNELS = {"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"}
SOURCES = [
    "/etc/apt/sources.list.d/debian.sources",
    "/etc/apt/sources.list.d/ubuntu.sources",
    "/etc/apt/sources.list",
]
# What the initrd loads, in this order; what they depend on goes before.
MODULES = ["virtio_pci", "virtio_blk", "ext4"]
# Without documents and translations the file system is made in half the time.
UNWANTED = ["usr/share/doc/*", "usr/share/locale/*", "usr/share/man/*", "usr/share/i18n/locales/*"]
MASKED = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "cloud-init-hotplugd.socket",
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


def run(*argv: str | Path, cwd: Path | None = None, stdin: bytes | None = None) -> bytes:
    """Run a command and return what it printed; show why where it failed."""
    done = subprocess.run(argv, cwd=cwd, input=stdin, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, argv))} failed: {done.stderr.decode()}")
    return done.stdout


def bootstrap(tree: Path, distribution: str, suite: str, sources: list[Path]) -> None:
    """Install the distribution into a directory, as root."""
    packages = ",".join([*PACKAGES, KERNELS[distribution], "busybox-static"])
    excluded = [f"--dpkgopt=path-exclude=/{pattern}" for pattern in UNWANTED]
    # An initrd is made by the kernel's package: it is not what we boot, so the quickest will do.
    run(
        *("mmdebstrap", "--quiet", "--variant=minbase", "--aptopt=APT::Install-Recommends false", *excluded),
        *("--setup-hook=mkdir -p $1/etc/initramfs-tools/conf.d && echo MODULES=list >$1/etc/initramfs-tools/conf.d/list",),
        *(f"--include={packages}", suite, tree, *sources),
    )


def configure(tree: Path) -> None:
    """Make an image of an installation: what differs between machines goes, what costs time is turned off."""
    shutil.copytree(HERE / "image", tree, dirs_exist_ok=True)
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (tree / "etc/hostname").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    for directory, names in (("etc/systemd/system", MASKED), ("etc/systemd/system-generators", MASKED_GENERATORS)):
        (tree / directory).mkdir(parents=True, exist_ok=True)
        for name in names:
            (tree / directory / name).symlink_to("/dev/null")
    run("chroot", tree, "systemctl", "enable", "systemd-networkd.service", "ssh.service")
    for leftover in [*(tree / "boot").glob("initrd*"), *tree.glob("initrd*")]:
        leftover.unlink()


def build_initrd(tree: Path, kernel_release: str) -> bytes:
    """Return an initrd of the tree's own busybox and modules, and init."""
    modules = tree / "usr/lib/modules"
    if not modules.exists():
        modules = tree / "lib/modules"
    order: list[str] = []
    for line in run(
        *("modprobe", "--all", "--show-depends", "--dirname", modules.parents[1], "--set-version", kernel_release),
        *MODULES,
    ).splitlines():
        kind, _, path = line.decode().strip().partition(" ")
        if kind == "insmod" and path.split()[0] not in order:
            order.append(path.split()[0])
    with tempfile.TemporaryDirectory() as directory:
        content = Path(directory)
        for name in ("bin", "dev", "modules", "proc", "root", "sys"):
            (content / name).mkdir()
        shutil.copy(tree / "usr/bin/busybox", content / "bin/busybox")
        for number, module in enumerate(order):
            data = Path(module).read_bytes()
            tool = {".xz": "xz", ".zst": "zstd", ".gz": "gzip"}.get(Path(module).suffix)
            unpacked = run(tool, "--decompress", "--stdout", module) if tool else data
            (content / "modules" / f"{number:02}-{Path(module).name.split('.')[0]}.ko").write_bytes(unpacked)
        shutil.copy(HERE / "init", content / "init")
        (content / "init").chmod(0o755)
        names = "\n".join(sorted(str(path.relative_to(content)) for path in content.rglob("*")))
        archive = run(
            *("cpio", "--create", "--format=newc", "--quiet", "--owner=0:0"), cwd=content, stdin=names.encode()
        )
    return gzip.compress(archive, compresslevel=6, mtime=0)


def build(output: Path, distribution: str, suite: str, sources: list[Path]) -> None:
    """Fill an empty directory."""
    tree = output / "tree"
    bootstrap(tree, distribution, suite, sources)
    configure(tree)
    kernel = next((tree / "boot").glob("vmlinuz-*"))
    shutil.copy(kernel, output / "vmlinuz")
    (output / "initrd").write_bytes(build_initrd(tree, kernel.name.removeprefix("vmlinuz-")))
    raw = output / "disk.raw"
    run("mkfs.ext4", "-q", "-L", "cloudimg-rootfs", "-d", tree, raw, "1536M")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, output / "disk.qcow2")
    raw.unlink()


def main() -> None:
    """Build what the command line asks for, unless it is there."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    output = Path(sys.argv[1]).absolute()
    suite = sys.argv[2] if len(sys.argv) > 2 else release["VERSION_CODENAME"]
    if release["ID"] not in KERNELS:
        raise SystemExit(f"{release['ID']} is not known to this builder; known are {', '.join(KERNELS)}")
    # Another suite than this machine's comes from the distribution's usual place.
    own = [Path(name) for name in SOURCES if Path(name).exists()][:1]
    sources = own if suite == release["VERSION_CODENAME"] else []
    digest = hashlib.sha256()
    for path in sorted(path for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(path.read_bytes())
    stamp = f"{release['ID']} {suite} {digest.hexdigest()}\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{output}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (output / "stamp").exists() and (output / "stamp").read_text() == stamp:
            return
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            new = Path(scratch, "new")
            new.mkdir()
            build(new, release["ID"], suite, sources)
            (new / "stamp").write_text(stamp)
            if output.exists():
                output.rename(Path(scratch, "old"))
            new.rename(output)


if __name__ == "__main__":
    main()
