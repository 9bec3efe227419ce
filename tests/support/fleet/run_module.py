# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a module of the collection on the host that this runs on. Usage: run_module.py NAME <OPTIONS.json

So that a test's call takes what the module takes, without a playbook around it. ``ansible`` and the collection must be on
PYTHONPATH.
"""

from __future__ import annotations

import json
import runpy
import sys

from ansible.module_utils.testing import patch_module_args

with patch_module_args(json.load(sys.stdin)):
    runpy.run_module(f"ansible_collections.microvm.cloud_hypervisor.plugins.modules.{sys.argv[1]}", run_name="__main__")
