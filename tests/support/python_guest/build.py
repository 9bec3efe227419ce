# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Build the small guest with Python and an ssh server in it, from the distribution's packages.

Usage: build.py SMALL_GUEST_DIRECTORY OUTPUT_DIRECTORY

Writes initramfs, for the small guest's vmlinuz, and ``key``, whose owner may log in as root; in some 20 seconds. Does nothing
where they were built from the same already. What the guest does is in ``more`` beside this file.
"""

from __future__ import annotations

import gzip
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = "python3,dropbear-bin"
# The small guest has these from busybox; the rest is for people.
LEFT_OUT = ("bin", "sbin", "dev", "var", "etc", "usr/share", "usr/lib/x86_64-linux-gnu/gconv", "lib/systemd")


def run(*argv: str, cwd: Path | None = None, stdin: bytes | None = None) -> bytes:
    """Run a command and return what it printed; show why where it failed."""
    done = subprocess.run(argv, cwd=cwd, input=stdin, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)} failed: {done.stderr.decode()}")
    return done.stdout


def suite() -> str:
    """Return the name of this distribution's release."""
    return platform.freedesktop_os_release()["VERSION_CODENAME"]


def main() -> None:
    """Build into the directory that the command line names."""
    small, output = map(Path, sys.argv[1:])
    output.mkdir(parents=True, exist_ok=True)
    base = (small / "initramfs").read_bytes()
    own = b"".join((HERE / name).read_bytes() for name in ("build.py", "more", "vsock.py"))
    stamp = hashlib.sha256(base + own).hexdigest()
    if (output / "stamp").exists() and (output / "stamp").read_text() == stamp:
        return
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        tree = Path(scratch) / "tree"
        run("mmdebstrap", "--quiet", "--variant=extract", f"--include={PACKAGES}", suite(), str(tree))
        for name in LEFT_OUT:
            shutil.rmtree(tree / name, ignore_errors=True)
        for name in ("etc", "root/.ssh"):
            (tree / name).mkdir(parents=True)
        for name in ("more", "vsock.py"):
            shutil.copy(HERE / name, tree / "etc" / name)
        (output / "key").unlink(missing_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(output / "key"))
        shutil.move(output / "key.pub", tree / "root/.ssh/authorized_keys")
        files = sorted(str(path.relative_to(tree)) for path in tree.rglob("*") if "__pycache__" not in path.parts)
        archive = run(
            "cpio", "--create", "--format=newc", "--quiet", "--owner=0:0", cwd=tree, stdin="\n".join(files).encode()
        )
    # The kernel unpacks one archive after the other.
    (output / "initramfs").write_bytes(base + gzip.compress(archive, compresslevel=1, mtime=0))
    (output / "stamp").write_text(stamp)


if __name__ == "__main__":
    main()
