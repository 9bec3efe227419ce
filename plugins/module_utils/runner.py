# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Running host commands: argument vectors only, never a shell."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .errors import CommandFailed


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command left: its exit status and its output, decoded as UTF-8."""

    returncode: int
    stdout: str
    stderr: str


class Runner(Protocol):
    """Runs a command. Tests pass a double where the real command would need a host of its own."""

    def run(
        self, argv: Sequence[str], *, stdin: str | None = None, timeout: float | None = None, check: bool = True
    ) -> Completed:
        """Run ``argv`` and wait at most ``timeout`` seconds.

        With ``check``, a non-zero exit status raises CommandFailed. A command that is not installed or that
        takes too long raises CommandFailed in any case.
        """


class HostRunner:
    """Runs commands on this host, in the C locale, since their messages are parsed and quoted in errors."""

    def run(
        self, argv: Sequence[str], *, stdin: str | None = None, timeout: float | None = None, check: bool = True
    ) -> Completed:
        """See Runner.run."""
        try:
            done = subprocess.run(
                list(argv),
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError as error:
            raise CommandFailed(f"the command '{argv[0]}' is not installed on this host") from error
        except subprocess.TimeoutExpired as error:
            raise CommandFailed(f"the command '{' '.join(argv)}' did not end within {timeout:g} seconds") from error
        if check and done.returncode != 0:
            raise CommandFailed(
                f"the command '{' '.join(argv)}' failed with exit status {done.returncode}: "
                f"{(done.stderr or done.stdout).strip()}"
            )
        return Completed(done.returncode, done.stdout, done.stderr)
