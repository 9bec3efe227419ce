# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What the connections to guests have in common: how their hypervisor host is reached."""

    DOCUMENTATION = r"""
options:
  vm:
    description: The VM's name on its hypervisor host.
    type: str
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_microvm_name
  hypervisor:
    description:
      - Where ssh finds the hypervisor host, such as V(root@hv1.example.org). Empty is this machine.
    type: str
    default: ""
    vars:
      - name: ansible_microvm_host
  hypervisor_ssh_args:
    description: Arguments of the ssh that goes to the hypervisor host.
    type: str
    default: ""
    vars:
      - name: ansible_microvm_ssh_args
  hypervisor_command:
    description:
      - The program that the role P(microvm.cloud_hypervisor.host#role) installs on the hypervisor host. It must run as root there,
        so give V(sudo microvm) where the user is another.
    type: str
    default: microvm
    vars:
      - name: ansible_microvm_command
"""
