#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_capacity
short_description: Refuse VMs that do not fit on a host
version_added: 0.2.0
description:
  - Compares what VMs ask for with what the host has, times over as O(capacity) says, and with what is promised to the VMs on
    record, whether they run or not. Fails for those that do not fit. Changes nothing.
  - So a VM is refused before images, addresses and disks are made for it. M(microvm.cloud_hypervisor.ch_vm) looks again.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
requirements:
  - the Python library requests-unixsocket
extends_documentation_fragment:
  - microvm.cloud_hypervisor.bulk.info
options:
  vms:
    description: The VMs, looked at in this order, each beside those that are there or fitted before it.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The VM's name.
        type: str
        required: true
      memory:
        description: The most memory that its guest can have.
        type: str
        required: true
      vcpus:
        description: The most vCPUs that its guest can have.
        type: int
        required: true
      disk:
        description: The size of all its disks. For a VM on record, what its disks may still take counts.
        type: str
        required: true
  capacity:
    description: How many times over what the host has may be promised, as O(microvm.cloud_hypervisor.ch_vm#module:capacity).
    type: dict
    suboptions:
      memory_ratio:
        description: For the memory.
        type: float
        default: 1.5
      vcpu_ratio:
        description: For the CPUs. Where it is not given, there may be any number of vCPUs.
        type: float
      disk_ratio:
        description: For what is free where O(state_dir) lies.
        type: float
        default: 10
  state_dir:
    description: The directory in which each VM has its own, C(vms/NAME).
    type: path
    default: /var/lib/microvm
seealso:
  - module: microvm.cloud_hypervisor.ch_vm
  - module: microvm.cloud_hypervisor.ch_placement
"""

EXAMPLES = r"""
- name: See that two VMs fit
  microvm.cloud_hypervisor.ch_capacity:
    capacity: {memory_ratio: 1}
    vms:
      - {name: web, memory: 1GiB, vcpus: 2, disk: 20GiB}
      - {name: db, memory: 8GiB, vcpus: 4, disk: 200GiB}
"""

RETURN = r"""
vms:
  description: The VMs by their names; C(failed) and C(msg) say which do not fit, and why.
  returned: always
  type: dict
  sample:
    web: {changed: false, actions: []}
    db: {changed: false, failed: true, msg: "VM 'db', option 'memory': the VM does not fit"}
host:
  description: What the host has, and what is promised, as M(microvm.cloud_hypervisor.ch_vm_info) returns it.
  returned: always
  type: dict
  sample: {memory: 25275179008, vcpus: 8, disk_free: 78383153152, promised_memory: 0, promised_vcpus: 0, promised_disk: 0}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import capacity
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome, report
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

VM = {
    "name": {"type": "str", "required": True},
    "memory": {"type": "str", "required": True},
    "vcpus": {"type": "int", "required": True},
    "disk": {"type": "str", "required": True},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "vms": {"type": "list", "elements": "dict", "required": True, "options": VM},
            "capacity": {"type": "dict", "options": capacity.RATIO_OPTIONS, "apply_defaults": True},
            "state_dir": {"type": "path", "default": "/var/lib/microvm"},
        },
        supports_check_mode=True,
    )
    state_dir = Path(module.params["state_dir"])
    there, before = capacity.read_host(state_dir), capacity.promised(state_dir)
    try:
        wanted = capacity.demands(module.params["vms"], before)
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    refused = capacity.refusals(wanted, before, there, capacity.Ratios(**module.params["capacity"]))
    outcomes = {name: refused.get(name) or Outcome(changed=False) for name in wanted}
    module.exit_json(**report(outcomes), host=capacity.facts(there, before))


if __name__ == "__main__":
    main()
