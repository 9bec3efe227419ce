#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_snapshot_info
short_description: Tell about the snapshots of VMs
version_added: 0.2.0
description:
  - Returns the snapshots that M(microvm.cloud_hypervisor.ch_snapshot) has made on a host. Changes nothing.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
extends_documentation_fragment:
  - microvm.cloud_hypervisor.bulk.info
options:
  names:
    description: The VMs' names. The default is all that have snapshots, whether the VM is still there or not.
    type: list
    elements: str
  state_dir:
    description: The directory with C(snapshots/NAME).
    type: path
    default: /var/lib/microvm
seealso:
  - module: microvm.cloud_hypervisor.ch_snapshot
"""

EXAMPLES = r"""
- name: Ask for all snapshots
  microvm.cloud_hypervisor.ch_snapshot_info:
  register: info

- name: Show the newest one of each VM
  ansible.builtin.debug:
    msg: "{{ item.key }}: {{ (item.value.snapshots | last).name }}"
  loop: "{{ info.vms | dict2items }}"
"""

RETURN = r"""
vms:
  description:
    - The snapshots of each VM, by its name, the oldest first, with their sizes in bytes.
    - C(unfinished) are the paths of what runs that were killed have left; the next run of
      M(microvm.cloud_hypervisor.ch_snapshot) removes it.
  returned: always
  type: dict
  sample:
    web:
      changed: false
      actions: []
      unfinished: []
      snapshots:
        - name: before-upgrade
          path: /var/lib/microvm/snapshots/web/before-upgrade
          created: "2026-01-31T23:59:59.000000+00:00"
          memory: true
          vmm_version: 53.0.0
          size: 1073741824
"""

from functools import partial
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import snapshot_store, vm_snapshot
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import report, run_each


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str"},
            "state_dir": {"type": "path", "default": "/var/lib/microvm"},
        },
        supports_check_mode=True,
    )
    state_dir = Path(module.params["state_dir"])
    names = snapshot_store.with_snapshots(state_dir) if module.params["names"] is None else module.params["names"]
    gather = partial(vm_snapshot.gather, state_dir=state_dir)
    module.exit_json(**report(run_each([{"name": name} for name in names], gather)))


if __name__ == "__main__":
    main()
