#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_nft
short_description: Isolate VMs with nftables
version_added: 0.1.0
description:
  - A VM may reach out through the uplink, with the host's address, and get answers. Nothing reaches it but the host itself
    and what is asked for; other VMs and the host are out of its reach.
  - A packet whose source is not the VM's own MAC and address is dropped, and so are router advertisements, redirects, forged
    ARP, and what a DHCP server would say.
  - The rules are in the tables C(inet cloud_hypervisor) and C(arp cloud_hypervisor), are the same for any number of VMs, and
    change in one transaction. What is missing or was changed by hand is put right by the next run.
  - The ruleset is also written to C(nftables/cloud_hypervisor.nft) in O(state_dir), for C(nftables.service) to load at the
    host's next boot.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
extends_documentation_fragment:
  - microvm.cloud_hypervisor.bulk.attributes
options:
  name: &name
    description: The VM's name, a lower-case host name label.
    type: str
  state: &state
    description: Whether the VM has its rules. The default is V(present). The last VM takes the tables with it.
    type: str
    choices: [present, absent]
  tap: &tap
    description: The VM's TAP, which need not be there yet.
    type: str
  mac: &mac
    description: The VM's MAC.
    type: str
  address: &address
    description: The VM's IPv4 address.
    type: str
  address6: &address6
    description: The VM's IPv6 address. One that is not global, such as a unique local one, goes out with the host's.
    type: str
  egress: &egress
    description: Where the VM may reach.
    type: dict
    suboptions:
      policy:
        description:
          - V(all) is everywhere but private networks, V(none) only what O(egress.allow) says. The default is V(all).
        type: str
        choices: [all, none]
      private:
        description:
          - Whether V(all) means private networks as well, among them the clouds' metadata service 169.254.169.254. The default
            is V(false).
        type: bool
      allow:
        description: More places that it may reach, private ones too.
        type: list
        elements: dict
        suboptions:
          cidr:
            description: The network.
            type: str
            required: true
          proto:
            description: The protocol. Without, it is all of them.
            type: str
            choices: [tcp, udp]
          ports:
            description: A port, or a range such as V(8000-8010), of O(egress.allow[].proto).
            type: str
  forwards: &forwards
    description: Ports of the host that lead to the VM, for other hosts and for the host itself by its own address.
    type: list
    elements: dict
    suboptions:
      port:
        description: The host's port, or a range such as V(8000-8010).
        type: str
        required: true
      guest_port:
        description: The VM's port, the first of as many. The default is O(forwards[].port).
        type: int
      proto:
        description: The protocol. The default is V(tcp).
        type: str
        choices: [tcp, udp]
      host_address:
        description: The host's address. Without, it is any of them.
        type: str
      sources:
        description: The networks whose hosts may connect. Without, all may.
        type: list
        elements: str
  host_services: &host_services
    description: Ports of the host that the VM may reach.
    type: list
    elements: dict
    suboptions:
      port:
        description: The port, or a range such as V(8000-8010).
        type: str
        required: true
      proto:
        description: The protocol. The default is V(tcp).
        type: str
        choices: [tcp, udp]
  vms:
    description: A list of VMs, each with the options of this module; what is given beside it is each item's default.
    type: list
    elements: dict
    suboptions:
      name: *name
      state: *state
      tap: *tap
      mac: *mac
      address: *address
      address6: *address6
      egress: *egress
      forwards: *forwards
      host_services: *host_services
  uplink:
    description: The interface that leads out. The default is the one, or those, of the default routes.
    type: str
  state_dir:
    description: The directory in which C(nftables) is kept.
    type: path
    default: /var/lib/microvm
seealso:
  - module: microvm.cloud_hypervisor.ch_lease
"""

EXAMPLES = r"""
- name: Let a web server be reached
  microvm.cloud_hypervisor.ch_nft:
    name: web
    tap: "{{ leased.vms.web.tap }}"
    mac: "{{ leased.vms.web.mac }}"
    address: "{{ leased.vms.web.address }}"
    forwards:
      - port: 443
      - port: 8080
        guest_port: 80
        sources: [192.0.2.0/24]

- name: Let a worker reach one database and nothing else
  microvm.cloud_hypervisor.ch_nft:
    name: worker
    tap: chtap1
    mac: "02:63:0a:d5:00:06"
    address: 10.213.0.6
    egress:
      policy: none
      allow:
        - cidr: 10.0.7.0/24
          proto: tcp
          ports: 5432

- name: Remove what is there for two VMs
  microvm.cloud_hypervisor.ch_nft:
    state: absent
    vms:
      - name: web
      - name: worker
"""

RETURN = r"""
vms:
  description: What was done for each VM, by its name.
  returned: always
  type: dict
  sample:
    web:
      changed: true
      actions: [added 12 elements]
      state: present
uplinks:
  description: The interfaces that lead out.
  returned: success
  type: list
  elements: str
  sample: [eth0]
foreign_drops:
  description:
    - Chains of other tables, such as those of Docker, ufw and firewalld, that drop by default what passes through the host.
      What this module accepts must be accepted there as well.
  returned: success
  type: list
  elements: str
  sample: [ip filter FORWARD]
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import firewall
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import report, requested
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner

PROTO = {"type": "str", "choices": ["tcp", "udp"]}
ALLOW_OPTIONS = {"cidr": {"type": "str", "required": True}, "proto": PROTO, "ports": {"type": "str"}}
FORWARD_OPTIONS = {
    "port": {"type": "str", "required": True},
    "guest_port": {"type": "int"},
    "proto": PROTO,
    "host_address": {"type": "str"},
    "sources": {"type": "list", "elements": "str"},
}
VM_OPTIONS = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"]},
    "tap": {"type": "str"},
    "mac": {"type": "str"},
    "address": {"type": "str"},
    "address6": {"type": "str"},
    "egress": {
        "type": "dict",
        "options": {
            "policy": {"type": "str", "choices": ["all", "none"]},
            "private": {"type": "bool"},
            "allow": {"type": "list", "elements": "dict", "options": ALLOW_OPTIONS},
        },
    },
    "forwards": {"type": "list", "elements": "dict", "options": FORWARD_OPTIONS},
    "host_services": {
        "type": "list",
        "elements": "dict",
        "options": {"port": {"type": "str", "required": True}, "proto": PROTO},
    },
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **VM_OPTIONS,
            "vms": {"type": "list", "elements": "dict", "options": VM_OPTIONS},
            "uplink": {"type": "str"},
            "state_dir": {"type": "path", "default": "/var/lib/microvm"},
        },
        supports_check_mode=True,
    )
    try:
        done = firewall.ensure(
            requested(module.params, shared=["state_dir", "uplink"]),
            state_dir=Path(module.params["state_dir"]),
            runner=HostRunner(),
            uplink=module.params["uplink"],
            check_mode=module.check_mode,
        )
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    for chain in done.foreign_drops:
        module.warn(
            f"the chain '{chain}' drops by default; what reaches a VM, or leaves it, must be accepted there too"
        )
    module.exit_json(**report(done.outcomes), uplinks=done.uplinks, foreign_drops=done.foreign_drops)


if __name__ == "__main__":
    main()
