# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import sys

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import CommandFailed
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner

PYTHON = sys.executable


def test_output_input_and_locale() -> None:
    code = "import os, sys; print(os.environ['LC_ALL'] + sys.stdin.read()); print('e', file=sys.stderr)"
    done = HostRunner().run([PYTHON, "-c", code], stdin="given")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Cgiven\n", "e\n")


def test_arguments_reach_the_command_as_they_are() -> None:
    code = "import sys; print(sys.argv[1], end='')"
    assert HostRunner().run([PYTHON, "-c", code, "$(id); '`"]).stdout == "$(id); '`"


def test_failure_quotes_the_command_and_what_it_said() -> None:
    with pytest.raises(CommandFailed, match="exit status 3: no such thing"):
        HostRunner().run([PYTHON, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"])


def test_an_unchecked_failure_is_returned() -> None:
    assert HostRunner().run([PYTHON, "-c", "raise SystemExit(3)"], check=False).returncode == 3


def test_a_missing_command_is_named() -> None:
    with pytest.raises(CommandFailed, match="'no-such-command' is not installed"):
        HostRunner().run(["no-such-command"])


def test_a_command_that_hangs_is_ended() -> None:
    with pytest.raises(CommandFailed, match="did not end within 0.1 seconds"):
        HostRunner().run([PYTHON, "-c", "import time; time.sleep(60)"], timeout=0.1)
