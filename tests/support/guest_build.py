# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the builders of guests share: the distribution's kernel, its modules, and an initramfs of them."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

# By distribution: the package that depends on the newest kernel's.
KERNELS = {"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"}


def run(*argv: str | Path, cwd: Path | None = None, stdin: bytes | None = None) -> bytes:
    """Run a command and return what it printed; show why where it failed."""
    done = subprocess.run(argv, cwd=cwd, input=stdin, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, argv))} failed: {done.stderr.decode()}")
    return done.stdout


def distribution() -> tuple[str, str]:
    """Return this machine's distribution and the name of its release, such as debian and bookworm."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    if release["ID"] not in KERNELS:
        raise SystemExit(f"{release['ID']} is not known to this builder; known are {', '.join(KERNELS)}")
    return release["ID"], release["VERSION_CODENAME"]


def digest(files: Iterable[Path]) -> str:
    """Return one digest of what a guest is built with."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in [*files, Path(__file__)])).hexdigest()


def modules_in_order(tree: Path, kernel: str, names: Iterable[str]) -> list[Path]:
    """Return the modules that are wanted and those they depend on, so that each comes after what it needs."""
    # Newer distributions have /lib as a link to /usr/lib.
    library = next(place for place in (tree / "usr/lib/modules", tree / "lib/modules") if place.exists())
    run("depmod", "--basedir", library.parents[1], kernel)
    depends: dict[Path, list[Path]] = {}
    for line in (library / kernel / "modules.dep").read_text().splitlines():
        module, _colon, needed = line.partition(":")
        depends[Path(module)] = [Path(name) for name in needed.split()]
    by_name = {module.name.split(".")[0].replace("-", "_"): module for module in depends}
    order: list[Path] = []
    for name in names:
        module = by_name.get(name.replace("-", "_"))
        if module is not None:  # else it is built in
            order += [needed for needed in (*reversed(depends[module]), module) if needed not in order]
    return [library / kernel / module for module in order]


def initramfs(tree: Path, modules: Iterable[Path]) -> bytes:
    """Return an initramfs of a directory and of modules, which get names in their order in lib/modules."""
    (tree / "lib/modules").mkdir(parents=True)
    tools = {".xz": "xz", ".zst": "zstd", ".gz": "gzip"}
    for number, module in enumerate(modules):
        tool = tools.get(module.suffix)
        plain = run(tool, "--decompress", "--stdout", module) if tool else module.read_bytes()
        (tree / "lib/modules" / f"{number:02}-{module.name.split('.')[0]}.ko").write_bytes(plain)
    files = "\n".join(sorted(str(path.relative_to(tree)) for path in tree.rglob("*")))
    archive = run("cpio", "--create", "--format=newc", "--quiet", "--owner=0:0", cwd=tree, stdin=files.encode())
    return gzip.compress(archive, compresslevel=6, mtime=0)
