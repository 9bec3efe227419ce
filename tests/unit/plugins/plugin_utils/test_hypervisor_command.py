# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import shlex
import subprocess

from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils.hypervisor_command import argv


def test_on_this_machine() -> None:
    assert argv("sudo microvm", ["console", "web"], host="", ssh_args="-p 1") == ["sudo", "microvm", "console", "web"]


def test_on_another_the_words_come_through_its_shell() -> None:
    odd = ["a b", "'", "$HOME", "%h"]
    command = argv("printf '%s|'", odd, host="root@hv1", ssh_args="-p 2222 -i '/a key'")
    assert command[:-1] == ["ssh", "-o", "BatchMode=yes", "-p", "2222", "-i", "/a key", "--", "root@hv1"]
    shown = subprocess.run(["sh", "-c", command[-1]], capture_output=True, text=True, check=True).stdout
    assert shown == "|".join(odd) + "|"
    assert shlex.split(command[-1]) == ["printf", "%s|", *odd]
