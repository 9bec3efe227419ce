# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program ``microvm`` as one file: a zip archive that Python runs (zipapp, PEP 441).

It holds microvm_command.py and what that imports from beside it, which so gets to a host with the module that writes it.
"""

from __future__ import annotations

import ast
import io
import stat
import zipfile
from hashlib import sha256
from importlib.util import decode_source, find_spec
from pathlib import Path
from typing import Any

from . import microvm_command
from .errors import MicrovmError
from .files import write

_MAIN = "import sys\n\nfrom microvm.microvm_command import main\n\nsys.exit(main())\n"
_MODE = 0o755
# The oldest time that an entry can have (APPNOTE.TXT of PKWARE, 4.4.6): equal sources give equal bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def imported(source: str) -> set[str]:
    """Return the names that a source imports from its own package, by ``from . import a`` and ``from .a import b``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {node.module} if node.module else {alias.name for alias in node.names}
    return names


def sources() -> dict[str, str]:
    """Return the sources that the program consists of, by their modules' names.

    They are read by the loader that has imported this module: from files, or from the archive that Ansible has sent.
    """
    found: dict[str, str] = {}
    wanted = {microvm_command.__name__.rpartition(".")[2]}
    while wanted:
        name = wanted.pop()
        spec = find_spec(f"{__package__}.{name}")
        # Loaders need not offer it; those of files and of archives do.
        get_source = getattr(spec and spec.loader, "get_source", None)
        source: str | bytes | None = get_source(f"{__package__}.{name}") if get_source else None
        if source is None:
            raise MicrovmError(f"the source of the module '{name}' cannot be read; report this as a defect")
        if isinstance(source, bytes):  # by the loader that Ansible has on the controller
            source = decode_source(source)
        found[name] = source
        wanted |= imported(source) - found.keys()
    return found


def archive(interpreter: str) -> bytes:
    """Return the program, to be run by the Python at the path ``interpreter``, isolated from its user's settings."""
    files = {"__main__.py": _MAIN, "microvm/__init__.py": ""}
    files |= {f"microvm/{name}.py": source for name, source in sources().items()}
    buffer = io.BytesIO(f"#!{interpreter} -I\n".encode())
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a", compression=zipfile.ZIP_STORED) as file:
        for name, source in sorted(files.items()):
            file.writestr(zipfile.ZipInfo(name, _EPOCH), source)
    return buffer.getvalue()


def install(path: Path, wanted: bytes | None, *, check_mode: bool) -> dict[str, Any] | None:
    """Have the program ``wanted`` at ``path``, or none; return what changes, as a module's ``diff``, or None for nothing."""
    found = path.read_bytes() if path.exists() else None
    if found == wanted and (found is None or stat.S_IMODE(path.stat().st_mode) == _MODE):
        return None
    if not check_mode:
        if wanted is None:
            path.unlink()
        else:
            write(path, wanted, mode=_MODE)
    headers = {"before_header": str(path), "after_header": str(path)}
    return {**headers, "before": _digests(found), "after": _digests(wanted)}


def _digests(program: bytes | None) -> dict[str, str]:
    """Return the SHA-256 of each file in a program; nothing for what is no archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(program or b"")) as file:
            return {name: sha256(file.read(name)).hexdigest() for name in file.namelist()}
    except zipfile.BadZipFile:
        return {}
