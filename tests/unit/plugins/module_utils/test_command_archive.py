# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import command_archive


def test_what_a_source_imports_from_beside_it() -> None:
    source = "import os\nfrom . import a, b\nfrom .c import d\nfrom e import f\ndef g():\n    from .h import i\n"
    assert command_archive.imported(source) == {"a", "b", "c", "h"}


def test_the_program_has_all_it_needs_and_nothing_of_ansible() -> None:
    sources = command_archive.sources()
    assert {"microvm_command", "command_unit", "vmm_api", "errors"} <= sources.keys()
    assert "command_archive" not in sources
    assert not [name for name, source in sources.items() if "import ansible" in source or "from ansible" in source]


def test_equal_sources_give_equal_bytes() -> None:
    assert command_archive.archive("/usr/bin/python3") == command_archive.archive("/usr/bin/python3")


def test_the_program_runs(tmp_path: Path) -> None:
    program = tmp_path / "microvm"
    change = command_archive.install(program, command_archive.archive(sys.executable), check_mode=False)
    assert change is not None
    done = subprocess.run([str(program), "--help"], text=True, capture_output=True, check=True, cwd="/")
    assert "prepare" in done.stdout


def test_it_is_installed_once_and_removed_once(tmp_path: Path) -> None:
    path, wanted = tmp_path / "microvm", command_archive.archive("/usr/bin/python3")
    asked = command_archive.install(path, wanted, check_mode=True)
    assert not path.exists()
    done = command_archive.install(path, wanted, check_mode=False)
    assert asked == done
    assert done is not None
    assert (done["before"], set(done["after"])) == ({}, {"__main__.py", "microvm/__init__.py", *_modules()})
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (wanted, 0o755)
    assert command_archive.install(path, wanted, check_mode=False) is None
    path.chmod(0o700)
    assert command_archive.install(path, wanted, check_mode=False) is not None
    assert command_archive.install(path, None, check_mode=False) is not None
    assert not path.exists()
    assert command_archive.install(path, None, check_mode=False) is None


def _modules() -> set[str]:
    return {f"microvm/{name}.py" for name in command_archive.sources()}
