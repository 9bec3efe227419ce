# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What the modules that take one VM or a list of VMs have in common."""

    DOCUMENTATION = r"""
options:
  workers:
    description:
      - How many VMs are worked on at the same time.
    type: int
    default: 8
"""

    VMM = r"""
requirements:
  - the Python library requests-unixsocket
options:
  state_dir:
    description: The directory in which each VM has its own, C(vms/NAME), for what is kept over a reboot.
    type: path
    default: /var/lib/microvm
  run_dir:
    description: The directory in which each VM that runs has its own, for sockets and the process id.
    type: path
    default: /run/microvm
"""

    ATTRIBUTES = r"""
options: {}
attributes:
  check_mode:
    support: full
    description:
      - Takes the same path as a real run up to the first change, so what it reports is what a run would do.
  diff_mode:
    support: full
    description:
      - Shows what would be or was changed, for each VM.
  idempotent:
    support: full
    description:
      - A second run with the same options changes nothing.
  platform:
    support: full
    platforms: linux
    description:
      - The systems that the module works on.
"""

    INFO = r"""
options: {}
attributes:
  check_mode:
    support: full
    description:
      - Changes nothing in any mode.
  diff_mode:
    support: N/A
    description:
      - Changes nothing, so that there is no difference to show.
  idempotent:
    support: full
    description:
      - Changes nothing.
  platform:
    support: full
    platforms: linux
    description:
      - The systems that the module works on.
"""
