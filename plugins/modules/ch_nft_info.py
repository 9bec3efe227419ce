#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_nft_info
short_description: Tell what the firewall has let through and dropped for VMs
version_added: 0.2.0
description:
  - Returns what M(microvm.cloud_hypervisor.ch_nft) has been asked for each VM, whether the kernel has it, and how many packets
    and bytes were counted. Changes nothing.
  - The kernel counts from when a VM's rules were added. A reboot of the host, a restart of C(nftables.service), and the repair of
    rules that were changed by hand begin anew.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
extends_documentation_fragment:
  - microvm.cloud_hypervisor.bulk.info
options:
  names:
    description: The VMs' names. The default is all that have rules.
    type: list
    elements: str
  state_dir:
    description: The directory in which C(nftables) is kept.
    type: path
    default: /var/lib/microvm
seealso:
  - module: microvm.cloud_hypervisor.ch_nft
"""

EXAMPLES = r"""
- name: Ask for all VMs
  microvm.cloud_hypervisor.ch_nft_info:
  register: firewall

- name: Show those that forge their addresses
  ansible.builtin.debug:
    msg: "{{ known | rejectattr('value.dropped.forged.packets', 'equalto', 0) | map(attribute='key') }}"
  vars:
    known: "{{ firewall.vms | dict2items | rejectattr('value.state', 'equalto', 'absent') }}"
"""

RETURN = r"""
vms:
  description: What is known of each VM, by its name. One without rules has its C(state) only.
  returned: success
  type: dict
  contains:
    state:
      description:
        - V(present), V(absent), or V(broken) where something of the VM's rules is missing in the kernel; then
          M(microvm.cloud_hypervisor.ch_nft) puts it right.
      type: str
      sample: present
    policy:
      description: The options of M(microvm.cloud_hypervisor.ch_nft).
      type: dict
      sample: {name: web, tap: chtap0, mac: "02:63:0a:d5:00:02", address: 10.213.0.2, forwards: [{port: "443"}]}
    sent:
      description: Packets and bytes that the VM has sent from its own addresses, whatever became of them.
      type: dict
      sample: {packets: 1200, bytes: 96000}
    received:
      description: Packets and bytes that have reached the VM.
      type: dict
      sample: {packets: 1100, bytes: 1400000}
    dropped:
      description:
        - Packets and bytes that were dropped, by reason.
        - V(forged) had an address or MAC that is not the VM's, or said what only a router or a DHCP server says; ARP counts too.
        - V(invalid) belonged to no connection. V(rate) began one too many.
        - V(egress), V(vm) and V(host) were for where the VM may not reach outside, for another VM and for the host.
        - V(incoming) were for the VM, and it has not asked for them, or they began one too many.
      type: dict
      sample:
        forged: {packets: 0, bytes: 0}
        invalid: {packets: 0, bytes: 0}
        rate: {packets: 0, bytes: 0}
        egress: {packets: 3, bytes: 180}
        vm: {packets: 0, bytes: 0}
        host: {packets: 0, bytes: 0}
        incoming: {packets: 17, bytes: 1020}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import firewall_counters
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import report
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str"},
            "state_dir": {"type": "path", "default": "/var/lib/microvm"},
        },
        supports_check_mode=True,
    )
    try:
        told = firewall_counters.gather(
            module.params["names"], state_dir=Path(module.params["state_dir"]), runner=HostRunner()
        )
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**report(told))


if __name__ == "__main__":
    main()
