# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Let ansible-test install its sanity tests' requirements from a package index alone.

``ansible-test`` bootstraps pip from a script that it downloads from a site of its own, which is not reachable from
behind a package mirror. It looks into its cache first. What this program puts there runs pip from pip's own wheel.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

CACHE = Path.home() / ".ansible/test/cache"

STAND_IN = """\
import sys
sys.path.insert(0, {wheel!r})
from pip._internal.cli.main import main
unknown_here = ("--no-setuptools", "--no-wheel")
sys.exit(main(["install", *(argument for argument in sys.argv[1:] if argument not in unknown_here), "pip=={version}"]))
"""


def pip_version() -> str:
    """Return the version of pip that the installed ansible-test asks for."""
    spec = importlib.util.find_spec("ansible_test")
    if spec is None or spec.origin is None:
        raise SystemExit("ansible_test is not installed for this Python")
    requirements = Path(spec.origin).parent / "_internal/python_requirements.py"
    match = re.search(r"pip='([\d.]+)'", requirements.read_text())
    if match is None:
        raise SystemExit("this ansible-test does not say which pip it wants")
    return match[1]


def main() -> None:
    """Fill ansible-test's cache, unless it is filled already."""
    version = pip_version()
    target = CACHE / f"get_pip_{version.replace('.', '_')}.py"
    if target.exists():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(CACHE), f"pip=={version}"]
    subprocess.run(download, check=True)
    wheel = CACHE / f"pip-{version}-py3-none-any.whl"
    target.write_text(STAND_IN.format(wheel=str(wheel), version=version))


if __name__ == "__main__":
    main()
