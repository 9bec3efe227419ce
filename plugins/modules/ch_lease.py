#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_lease
short_description: Lease addresses, MACs, TAP names and vsock context ids for VMs
version_added: 0.1.0
description:
  - Gives each VM a subnet of its own out of a pool, with the host on one side and the guest on the other, and what else
    must be unique on a host.
  - A VM keeps its lease until it is released, over reboots and whatever else is leased. Leases are kept in an SQLite
    database, so that runs at the same time never hand out the same one.
  - Subnets that overlap an address or a route of the host are passed over.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
extends_documentation_fragment:
  - microvm.cloud_hypervisor.bulk.attributes
options:
  name: &name
    description: The VM's name, a lower-case host name label.
    type: str
  state: &state
    description: Whether the VM has a lease. The default is V(present).
    type: str
    choices: [present, absent]
  pool: &pool
    description: Where its IPv4 subnet comes from.
    type: dict
    suboptions:
      cidr:
        description: The network that subnets are cut from. The default is V(10.213.0.0/16).
        type: str
      prefix:
        description:
          - The length of each subnet's prefix. The default is V(30), which has room for the host and one guest.
          - The host has the first usable address, and the guest the second unless O(address) says otherwise.
        type: int
      exclude:
        description: Networks, or single addresses, in the pool that are never leased.
        type: list
        elements: str
  pool6: &pool6
    description: Where its IPv6 subnet comes from. Without, the VM has no IPv6 address.
    type: dict
    suboptions:
      cidr:
        description: The network that subnets are cut from, such as a unique local one.
        type: str
      prefix:
        description: The length of each subnet's prefix. The default is V(126).
        type: int
      exclude:
        description: Networks, or single addresses, in the pool that are never leased.
        type: list
        elements: str
  address: &address
    description:
      - The guest's IPv4 address, where it must be a certain one of the pool.
      - The number of its TAP, and its vsock context id, then follow from the address, as its MAC does. So a VM to which a
        fleet gives an address of its own can be migrated to any of the hosts.
    type: str
  mac: &mac
    description: The guest's MAC. The default is derived from its IPv4 address, and so as unique as that.
    type: str
  tap_prefix: &tap_prefix
    description:
      - What the name of its TAP begins with; a number follows, such that no interface of the host has the name yet.
      - The default is V(chtap).
    type: str
  lease: &lease
    description:
      - The lease that the VM has on another host, as this module returned it there, to have the very same here. The
        guest's addresses and MAC do not change when it is migrated.
      - It is refused where anything of it is taken here. Give the hosts pools that do not overlap, so that this never
        happens.
    type: dict
    version_added: 0.2.0
  vms:
    description: A list of VMs, each with the options of this module; what is given beside it is each item's default.
    type: list
    elements: dict
    suboptions:
      name: *name
      state: *state
      pool: *pool
      pool6: *pool6
      address: *address
      mac: *mac
      tap_prefix: *tap_prefix
      lease: *lease
  state_dir:
    description: The directory that holds the database, C(leases.db).
    type: path
    default: /var/lib/microvm
seealso:
  - module: microvm.cloud_hypervisor.ch_vm
  - module: microvm.cloud_hypervisor.ch_nft
"""

EXAMPLES = r"""
- name: Lease for one VM
  microvm.cloud_hypervisor.ch_lease:
    name: web
  register: leased

- name: Show its address
  ansible.builtin.debug:
    msg: "{{ leased.vms.web.address }}"

- name: Lease for many VMs, with IPv6
  microvm.cloud_hypervisor.ch_lease:
    pool:
      cidr: 172.20.0.0/16
      exclude: [172.20.0.0/24]
    pool6:
      cidr: fd12:3456:789a::/64
    vms:
      - name: web
      - name: db
        address: 172.20.9.2

- name: Release
  microvm.cloud_hypervisor.ch_lease:
    name: web
    state: absent
"""

RETURN = r"""
vms:
  description: What each VM has, by its name; C(changed) and C(actions) alone for one without a lease.
  returned: always
  type: dict
  sample:
    web:
      changed: true
      actions: [leased 10.213.0.2]
      address: 10.213.0.2
      host_address: 10.213.0.1
      prefix: 30
      subnet: 10.213.0.0/30
      mac: 02:63:0a:d5:00:02
      tap: chtap0
      cid: 3
      address6: fd12:3456:789a::2
      host_address6: fd12:3456:789a::1
      prefix6: 126
      subnet6: fd12:3456:789a::/126
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import lease_store
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import report, requested
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner

POOL_OPTIONS = {
    "cidr": {"type": "str"},
    "prefix": {"type": "int"},
    "exclude": {"type": "list", "elements": "str"},
}
VM_OPTIONS = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"]},
    "pool": {"type": "dict", "options": POOL_OPTIONS},
    "pool6": {"type": "dict", "options": POOL_OPTIONS},
    "address": {"type": "str"},
    "mac": {"type": "str"},
    "tap_prefix": {"type": "str"},
    "lease": {"type": "dict"},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **VM_OPTIONS,
            "vms": {"type": "list", "elements": "dict", "options": VM_OPTIONS},
            "state_dir": {"type": "path", "default": "/var/lib/microvm"},
        },
        supports_check_mode=True,
    )
    try:
        outcomes = lease_store.ensure(
            requested(module.params, shared=["state_dir"]),
            state_dir=Path(module.params["state_dir"]),
            runner=HostRunner(),
            check_mode=module.check_mode,
        )
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**report(outcomes))


if __name__ == "__main__":
    main()
