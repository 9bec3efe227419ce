#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_placement
short_description: Assign VMs to hypervisor hosts
version_added: 0.2.0
description:
  - Gives each VM that has no host yet one that has room for it, and keeps that in a file on the controller.
  - A VM that has a host stays there. One that a host has already is taken to be there, whatever the file says. One that is
    not asked for any more is dropped from the file.
  - The same VMs and hosts, in whatever order, give the same placements.
  - Where no host has room for a VM, the others are placed, and the module fails with each host's reason.
  - The playbook C(microvm.cloud_hypervisor.place) runs it on the controller, with what M(microvm.cloud_hypervisor.ch_vm_info)
    tells of the hosts.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
attributes:
  check_mode:
    support: full
    description: Tells what it would do, and changes nothing.
  diff_mode:
    support: full
    description: Shows the file before and after.
  idempotent:
    support: full
    description: A second run changes nothing.
  platform:
    support: full
    description: Where it runs.
    platforms: posix
options:
  path:
    description: The file that keeps the placements, JSON. It is the module's own, but can be written by hand.
    type: path
    required: true
  strategy:
    description:
      - With V(spread) a VM goes to the host that has the largest part of its memory or vCPUs left, whichever is scarcer
        there, with V(pack) to the one that has the smallest.
    type: str
    choices: [spread, pack]
    default: spread
  capacity:
    description:
      - How many times over what a host has may be promised to its VMs. Give M(microvm.cloud_hypervisor.ch_vm) the same,
        which refuses what does not fit.
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
        description: For the free disk space.
        type: float
        default: 10
  vms:
    description: All VMs that are to have a place.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The VM's name.
        type: str
        required: true
      memory:
        description: The memory that it takes on its host, such as V(2GiB).
        type: str
        required: true
      vcpus:
        description: Its vCPUs.
        type: int
        required: true
      disk:
        description: The disk space that it takes, such as V(40GiB).
        type: str
        required: true
      anti_affinity:
        description: The name of a group. VMs of one group go to different hosts.
        type: str
      hosts:
        description: The hosts that it may go to. The default is all.
        type: list
        elements: str
  hosts:
    description: The hosts that have told of themselves. A VM that has its place on another one stays there.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The host's name.
        type: str
        required: true
      memory:
        description: How much memory it has, in bytes.
        type: int
        required: true
      promised_memory:
        description: How much of it is promised to the VMs there, in bytes.
        type: int
        required: true
      vcpus:
        description: How many CPUs it has.
        type: int
        required: true
      promised_vcpus:
        description: How many vCPUs are promised to the VMs there.
        type: int
        required: true
      disk_free:
        description: How much disk space is free, in bytes.
        type: int
        required: true
      promised_disk:
        description: How much of it the disks of the VMs there may still take, in bytes.
        type: int
        required: true
      vms:
        description: The names of the VMs there.
        type: list
        elements: str
        default: []
seealso:
  - module: microvm.cloud_hypervisor.ch_vm_info
"""

EXAMPLES = r"""
- name: Find a place for two web servers, on different hosts
  microvm.cloud_hypervisor.ch_placement:
    path: "{{ inventory_dir }}/placements.json"
    vms:
      - {name: web1, memory: 2GiB, vcpus: 2, disk: 20GiB, anti_affinity: web}
      - {name: web2, memory: 2GiB, vcpus: 2, disk: 20GiB, anti_affinity: web}
    hosts:
      - "{{ info_of_hv1.host | combine({'name': 'hv1', 'vms': info_of_hv1.vms.keys() | list}) }}"
      - "{{ info_of_hv2.host | combine({'name': 'hv2', 'vms': info_of_hv2.vms.keys() | list}) }}"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
placements:
  description: The host of each VM that has one, by the VM's name.
  returned: always
  type: dict
  sample: {web1: hv1, web2: hv2}
new:
  description: The names of the VMs that had none before.
  returned: always
  type: list
  elements: str
  sample: [web1, web2]
refused:
  description: Why each host cannot take a VM, by the VM's and the host's name.
  returned: always
  type: dict
  sample: {}
table:
  description: The same for people, a line each.
  returned: always
  type: list
  elements: str
  sample: []
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import placement, placement_file
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.capacity import RATIO_OPTIONS, Ratios
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError


def main() -> None:
    """Run the module."""
    vm_options = {
        "name": {"type": "str", "required": True},
        "memory": {"type": "str", "required": True},
        "vcpus": {"type": "int", "required": True},
        "disk": {"type": "str", "required": True},
        "anti_affinity": {"type": "str"},
        "hosts": {"type": "list", "elements": "str"},
    }
    host_options = {
        "name": {"type": "str", "required": True},
        "memory": {"type": "int", "required": True},
        "promised_memory": {"type": "int", "required": True},
        "vcpus": {"type": "int", "required": True},
        "promised_vcpus": {"type": "int", "required": True},
        "disk_free": {"type": "int", "required": True},
        "promised_disk": {"type": "int", "required": True},
        "vms": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "strategy": {"type": "str", "choices": ["spread", "pack"], "default": "spread"},
            "capacity": {"type": "dict", "options": RATIO_OPTIONS},
            "vms": {"type": "list", "elements": "dict", "required": True, "options": vm_options},
            "hosts": {"type": "list", "elements": "dict", "required": True, "options": host_options},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    try:
        demands = [placement.Demand.of(vm) for vm in module.params["vms"]]
        hosts = [placement.Host(**{**host, "vms": frozenset(host["vms"])}) for host in module.params["hosts"]]
        before = placement_file.read(path)
        ratios = Ratios(**(module.params["capacity"] or {}))
        plan = placement.plan(demands, hosts, before, strategy=module.params["strategy"], ratios=ratios)
        if plan.placements != before and not module.check_mode:
            placement_file.write(path, plan.placements)
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    result = {
        "changed": plan.placements != before,
        "diff": {"before": before, "after": plan.placements, "before_header": str(path), "after_header": str(path)},
        "placements": plan.placements,
        "new": sorted(plan.new),
        "refused": plan.refused,
        "table": placement.table(plan, demands),
    }
    if plan.refused:
        module.fail_json(msg=placement.refusal(plan), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
