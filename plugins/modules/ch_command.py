#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_command
short_description: Install the command microvm on a host
version_added: 0.2.0
description:
  - Writes the program C(microvm), one file in Python, with which VMs are started and stopped on the host without Ansible.
    The VMs' units call it.
  - It is made of the collection itself, so that it does what the collection's modules do. Write it again when the
    collection was updated; the role P(microvm.cloud_hypervisor.host#role) does.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
requirements:
  - the Python library requests-unixsocket, for the command
extends_documentation_fragment:
  - microvm.cloud_hypervisor.bulk.attributes
options:
  path:
    description: The program's path. The VMs' units call it by its default.
    type: path
    default: /usr/local/bin/microvm
  interpreter:
    description: The path of the Python that runs it. The default is the one that runs this module.
    type: path
  state:
    description: Whether it is there.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: microvm.cloud_hypervisor.ch_vm
"""

EXAMPLES = r"""
- name: Install the command
  microvm.cloud_hypervisor.ch_command:
"""

RETURN = r"""
path:
  description: The program's path.
  returned: always
  type: str
  sample: /usr/local/bin/microvm
"""

import sys
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import command_archive
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/usr/local/bin/microvm"},
            "interpreter": {"type": "path"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    try:
        wanted = None
        if module.params["state"] == "present":
            wanted = command_archive.archive(module.params["interpreter"] or sys.executable)
        change = command_archive.install(path, wanted, check_mode=module.check_mode)
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=change is not None, diff=change or {}, path=str(path))


if __name__ == "__main__":
    main()
