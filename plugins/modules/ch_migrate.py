#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_migrate
short_description: Do one step of the live migration of VMs to another host
version_added: 0.2.0
description:
  - To move a VM, run the playbook C(microvm.cloud_hypervisor.migrate). It has the role P(microvm.cloud_hypervisor.vm#role) put the
    steps together, with the lease and the rules that go with a VM. This module is for it, and for those who build their own.
  - The memory, and the disks that lie in the VM's own directory, go over ssh, with a key that is made for the one migration
    and can run nothing but C(microvm receive NAME) on the other host. The memory is copied while the guest runs. Where disks
    are copied, the guest stands still for as long as that takes.
  - Disks elsewhere must be on storage that both hosts have mounted in the same place, which is tried.
  - Refused by name are VMs with devices that belong to their host (fs, pmem, passed through, vDPA, of other processes), and
    disks that are no files.
  - A migration that fails leaves the guest running where it was. Where a VMM dies of it and the guest is lost, it is started
    again from its disks, and the step V(stayed) fails and says so.
  - Both hosts have the same O(state_dir) and O(run_dir).
  - While it is not known where a VM is, neither host starts it. A run that was killed is simply run again.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
requirements:
  - ssh, ssh-keygen and tar
extends_documentation_fragment:
  - microvm.cloud_hypervisor.bulk
  - microvm.cloud_hypervisor.bulk.vmm
  - microvm.cloud_hypervisor.bulk.attributes
attributes:
  diff_mode:
    support: none
    details:
      - A step is done, or it is not.
  idempotent:
    support: partial
    details:
      - A migration as a whole can be run again. Its steps make keys and processes anew.
options:
  name: &name
    description: The VM's name.
    type: str
  state: &state
    description:
      - The step. In this order, V(offered) on the host that has the VM, V(ready) on the one that it is to move to, V(sent) on
        the first, V(arrived) on the second, V(left) on the first.
      - Where V(ready), V(sent) or V(arrived) fails, V(abandoned) on the second host, then V(stayed) on the first.
    type: str
    choices: [offered, ready, sent, arrived, left, abandoned, stayed]
  offer: &offer
    description: What V(offered) has returned as C(offer). All other steps want it.
    type: dict
  host: &host
    description: The other host. With V(sent), its address for ssh; with V(ready), a name for messages.
    type: str
  port: &port
    description: The port of its sshd. The default is V(22).
    type: int
  user: &user
    description: The user whose C(authorized_keys) there has the key. The default is V(root).
    type: str
  host_key: &host_key
    description:
      - The other host's public key, such as C(ssh-ed25519 AAAA...), the content of its
        C(/etc/ssh/ssh_host_ed25519_key.pub).
    type: str
  command: &command
    description:
      - How the command C(microvm) is called on this host, with V(ready). The default is V(/usr/local/bin/microvm).
      - Where O(user) is not root, put C(sudo -n) before it.
    type: str
  timeout: &timeout
    description: For how many seconds the guest may be on its way before it is given up, and stays. The default is V(600).
    type: int
  vms:
    description: Many VMs in one call. Options beside this list are the defaults of each item.
    type: list
    elements: dict
    suboptions:
      name: *name
      state: *state
      offer: *offer
      host: *host
      port: *port
      user: *user
      host_key: *host_key
      command: *command
      timeout: *timeout
seealso:
  - module: microvm.cloud_hypervisor.ch_lease
  - module: microvm.cloud_hypervisor.ch_upgrade
"""

EXAMPLES = r"""
- name: Ask what a host would have to take
  microvm.cloud_hypervisor.ch_migrate:
    name: web
    state: offered
  check_mode: true
  register: asked

- name: Show it
  ansible.builtin.debug:
    var: asked.vms.web.offer
"""

RETURN = r"""
vms:
  description:
    - What was reached for each VM, by its name.
    - C(offer), of V(offered), is for the other steps. C(authorized_key), of V(ready), is a line for the file
      C(authorized_keys) of the user, and null where no key is needed any more.
    - C(left), of the steps on the first host, and C(arrived), of those on the second, tell where the guest is.
    - C(paused_seconds), of V(sent), is for how long it stood still where disks were copied.
    - With V(arrived) there is also what M(microvm.cloud_hypervisor.ch_vm_info) tells of a VM.
  returned: always
  type: dict
  sample:
    web:
      changed: true
      actions: [sent the guest]
      left: true
      paused_seconds: 4.2
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_bulk, vm_migrate
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

VM_OPTIONS = {
    "name": {"type": "str"},
    "state": {
        "type": "str",
        "choices": ["offered", "ready", "sent", "arrived", "left", "abandoned", "stayed"],
    },
    "offer": {"type": "dict"},
    "host": {"type": "str"},
    "port": {"type": "int"},
    "user": {"type": "str"},
    "host_key": {"type": "str", "no_log": False},
    "command": {"type": "str"},
    "timeout": {"type": "int"},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=vm_bulk.argument_spec(VM_OPTIONS), supports_check_mode=True)
    try:
        result = vm_bulk.run(module.params, vm_migrate.ensure, check_mode=module.check_mode)
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
