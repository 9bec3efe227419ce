# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program ``microvm`` on a hypervisor host, as a command on the controller. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def argv(command: str, arguments: Sequence[str], *, host: str, ssh_args: str) -> list[str]:
    """Return what runs ``command`` with its arguments on ``host``, over ssh; on this machine where ``host`` is empty.

    ``command`` may be more than a word, such as ``sudo microvm``; ``ssh_args`` is split as a shell does.
    """
    words = [*shlex.split(command), *arguments]
    if not host:
        return words
    # With no terminal near, a question would wait for ever. ssh hands the words to a shell on the host.
    return ["ssh", "-o", "BatchMode=yes", *shlex.split(ssh_args), "--", host, shlex.join(words)]
