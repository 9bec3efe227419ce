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
    and what is asked for; other VMs and the host are out of its reach, unless O(groups) and O(host_services) say otherwise.
  - A packet whose source is not the VM's own MAC and address is dropped, and so are router advertisements, redirects, forged
    ARP, and what a DHCP server would say.
  - The rules are in the tables C(inet cloud_hypervisor) and C(arp cloud_hypervisor), are the same for any number of VMs, and
    change in one transaction, which the kernel is asked beforehand whether it could do. What is missing or was changed by hand
    is put right by the next run that is about the VM; a run that is about all of the host's VMs, as the role's is, also removes
    what no VM has asked for.
  - Connections that were let in or out before a change go on after it; those of a VM that is removed, or has another address
    then, are forgotten where the host has the command C(conntrack).
  - The ruleset is also written to C(nftables/cloud_hypervisor.nft) in O(state_dir), for C(nftables.service) to load at the
    host's next boot; R(microvm.cloud_hypervisor.host, ansible_collections.microvm.cloud_hypervisor.host_role) has it do so.
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
  subnet: &subnet
    description: The subnet of the VM's lease. O(address) has to be in it.
    type: str
    version_added: 0.2.0
  subnet6: &subnet6
    description: The IPv6 subnet of the VM's lease. O(address6) has to be in it.
    type: str
    version_added: 0.2.0
  groups: &groups
    description:
      - The groups that the VM is in. The VMs of a group reach each other, by any protocol.
      - A group is there as long as a VM is in it. A VM has at most eight, those of O(egress.groups) included.
    type: list
    elements: str
    version_added: 0.2.0
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
      groups:
        description: Groups whose VMs it may reach, by any protocol, without their reaching it. See O(groups).
        type: list
        elements: str
        version_added: 0.2.0
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
        description: The networks whose hosts may connect. Without, all may. The host itself always may.
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
  new_connections: &new_connections
    description: How many connections may begin. What is over that is dropped; what has begun is not limited.
    type: dict
    version_added: 0.2.0
    suboptions:
      out:
        description: Those that the VM begins, wherever they lead. Without, there is no limit.
        type: dict
        suboptions:
          rate: &rate
            description: How many, in each O(new_connections.out.per).
            type: int
            required: true
          per: &per
            description: The unit of time. The default is V(second).
            type: str
            choices: [second, minute, hour, day]
          burst: &burst
            description: How many may begin at once. The default is V(5).
            type: int
      in:
        description: Those that come through O(forwards) from other hosts. Without, there is no limit.
        type: dict
        suboptions:
          rate: *rate
          per: *per
          burst: *burst
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
      subnet: *subnet
      subnet6: *subnet6
      groups: *groups
      egress: *egress
      forwards: *forwards
      host_services: *host_services
      new_connections: *new_connections
  uplink:
    description:
      - The interface that leads out. The default is the one, or those, of the default routes.
      - The one that was given last stays, for all VMs, until another one is given or no VM is left.
    type: str
  state_dir:
    description: The directory in which C(nftables) is kept.
    type: path
    default: /var/lib/microvm
seealso:
  - module: microvm.cloud_hypervisor.ch_lease
  - module: microvm.cloud_hypervisor.ch_nft_info
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

- name: Let a web server reach the databases, and them each other, but begin no flood
  microvm.cloud_hypervisor.ch_nft:
    vms:
      - name: web
        tap: chtap0
        mac: "02:63:0a:d5:00:02"
        address: 10.213.0.2
        egress:
          groups: [db]
        new_connections:
          out: {rate: 100, burst: 200}
      - name: db1
        tap: chtap1
        mac: "02:63:0a:d5:00:06"
        address: 10.213.0.6
        groups: [db]
      - name: db2
        tap: chtap2
        mac: "02:63:0a:d5:00:0a"
        address: 10.213.0.10
        groups: [db]

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
repaired:
  description:
    - Elements of the uplinks and of VMs that the call is not about, which were missing or strange and have been put right.
  returned: success
  type: list
  elements: str
  sample: []
  version_added: 0.2.0
foreign_drops:
  description:
    - Chains of other tables, such as those of Docker, ufw and firewalld, that drop or reject what they do not accept.
      What this module accepts must be accepted there as well.
    - Seen are policies, a last rule without a condition, and the policies of iptables from before nftables.
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
RATE = {
    "type": "dict",
    "options": {
        "rate": {"type": "int", "required": True},
        "per": {"type": "str", "choices": ["second", "minute", "hour", "day"]},
        "burst": {"type": "int"},
    },
}
NAMES = {"type": "list", "elements": "str"}
VM_OPTIONS = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"]},
    "tap": {"type": "str"},
    "mac": {"type": "str"},
    "address": {"type": "str"},
    "address6": {"type": "str"},
    "subnet": {"type": "str"},
    "subnet6": {"type": "str"},
    "groups": NAMES,
    "egress": {
        "type": "dict",
        "options": {
            "policy": {"type": "str", "choices": ["all", "none"]},
            "private": {"type": "bool"},
            "allow": {"type": "list", "elements": "dict", "options": ALLOW_OPTIONS},
            "groups": NAMES,
        },
    },
    "forwards": {"type": "list", "elements": "dict", "options": FORWARD_OPTIONS},
    "host_services": {
        "type": "list",
        "elements": "dict",
        "options": {"port": {"type": "str", "required": True}, "proto": PROTO},
    },
    "new_connections": {"type": "dict", "options": {"out": RATE, "in": RATE}},
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
            f"the chain '{chain}' drops what it does not accept; what reaches a VM, or leaves it, must be accepted there too"
        )
    result = report(done.outcomes)
    result["changed"] |= bool(done.repaired)
    module.exit_json(**result, uplinks=done.uplinks, repaired=done.repaired, foreign_drops=done.foreign_drops)


if __name__ == "__main__":
    main()
