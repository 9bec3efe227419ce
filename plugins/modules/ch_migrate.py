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
  - The memory, and the disks that lie in the VM's own directory, go over ssh, with a key that is made for the one migration,
    can run nothing but C(microvm receive NAME) on the other host, and is dead after an hour.
  - The memory is copied while the guest runs. So are the disks, in passes; then the guest is paused, a last pass sends what
    was written since, and the memory follows. A pass reads all that the disks hold, at a rate of about 1 GB/s where their
    host can, and sends what differs. For so long, and for as long as the memory takes, the guest stands still.
  - Disks elsewhere must be on storage that both hosts have mounted in the same place, which is tried, and in O(directories).
  - Refused by name are VMs with devices that belong to their host (fs, pmem, passed through, vDPA, of other processes), and
    disks that are no files.
  - A migration that fails leaves the guest running where it was. Where a VMM dies of it and the guest is lost, it is started
    again from its disks, and the step V(stayed) fails and says so.
  - Both hosts have the same O(state_dir) and O(run_dir).
  - While it is not known where a VM is, neither host starts it. A run that was killed is simply run again, and begins anew;
    a guest that it has paused goes on at once.
notes:
  - A host that was broken into can offer anything. The host that is to take the VM therefore takes O(vmm), O(supervisor) and
    O(unit) from whoever runs the playbook. Of the offer it takes options as M(microvm.cloud_hypervisor.ch_vm) does, and only
    files in the VM's own directories, in the store of images, to read, and in O(directories). It looks for links, for what
    images are based on before a VMM opens them, and for what the guest's VMM was told once it is there.
  - The VMM that takes the guest reads what the other host's one sends. As a unit it runs as the VM's user, in a sandbox. One that
    is a process of its own runs as root. Move VMs to such ones only from hosts that are trusted as much.
  - The host that takes a VM has all that is in it, and can lose it. The one that gives it removes its own copy when the other
    says that it has arrived, and believes that only of a VM which it has sent.
  - A VM with a qcow2 disk that it can write is refused, see O(accept_unflushed).
author:
  - The microvm.cloud_hypervisor developers (@microvm)
requirements:
  - ssh and ssh-keygen
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
    description:
      - For how many seconds the guest may be on its way before it is given up, and stays. It counts from the guest's pause
        where disks are copied. The default is V(600).
    type: int
  directories: &directories
    description:
      - With V(ready), where on this host a VM that comes may have disks, kernels and sockets beside its own directories and the
        images of M(microvm.cloud_hypervisor.ch_image), such as storage that both hosts share. There are none by default.
      - All that is in them can be named by a host that was broken into.
    type: list
    elements: path
    version_added: 0.3.0
  vmm: &vmm
    description:
      - With V(ready), the VMM of this host, as O(microvm.cloud_hypervisor.ch_vm#module:vmm). What the other host uses does
        not count. The default is V(cloud-hypervisor).
    type: str
    version_added: 0.3.0
  supervisor: &supervisor
    description: With V(ready), what runs it here, as O(microvm.cloud_hypervisor.ch_vm#module:supervisor). The default is V(auto).
    type: str
    choices: [auto, systemd, process]
    version_added: 0.3.0
  unit: &unit
    description: With V(ready), this host's template unit, as O(microvm.cloud_hypervisor.ch_vm#module:unit).
    type: str
    version_added: 0.3.0
  capacity:
    description:
      - With V(ready), how many times over what the host has may be promised, as
        O(microvm.cloud_hypervisor.ch_vm#module:capacity). A VM that does not fit is refused.
    type: dict
    version_added: 0.3.0
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
  accept_unflushed: &accept_unflushed
    description:
      - Whether a guest is offered though it has a qcow2 disk that it can write. The default is V(false).
      - Cloud Hypervisor keeps a part of what it writes to such an image in memory until the guest flushes the disk, and
        does not write it when the guest is paused. What the guest has not flushed can be lost then, and the image damaged.
        Say V(true) where the guest has run C(sync) and writes nothing.
      - Raw disks have no such part. They are made with C(root.mode) V(copy) or V(reflink) and C(data.format) V(raw) of
        M(microvm.cloud_hypervisor.ch_disks).
    type: bool
    version_added: 0.3.0
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
      accept_unflushed: *accept_unflushed
      directories: *directories
      vmm: *vmm
      supervisor: *supervisor
      unit: *unit
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
    - C(copied_bytes), of V(sent), is how many bytes of its disks each pass has sent, the last one while the guest stood still.
    - C(paused_seconds), of V(sent), is for how long it stood still where disks were copied, until it ran on the other host;
      null for one that was paused before, and where none were.
    - With V(arrived) there is also what M(microvm.cloud_hypervisor.ch_vm_info) tells of a VM.
  returned: always
  type: dict
  sample:
    web:
      changed: true
      actions: [sent the guest]
      left: true
      copied_bytes: [21474836480, 314572800, 1310720]
      paused_seconds: 4.2
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import (
    capacity,
    migration_trust,
    vm_bulk,
    vm_migrate,
    vm_options,
)
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

VM_OPTIONS = {
    "name": {"type": "str"},
    "accept_unflushed": {"type": "bool"},
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
    "directories": {"type": "list", "elements": "path"},
    **{option: vm_options.VM_OPTIONS[option] for option in migration_trust.OWN},
}


def main() -> None:
    """Run the module."""
    capacity_option = {"type": "dict", "options": capacity.RATIO_OPTIONS, "apply_defaults": True}
    module = AnsibleModule(
        argument_spec=vm_bulk.argument_spec(VM_OPTIONS, capacity=capacity_option), supports_check_mode=True
    )
    try:
        result = vm_bulk.run(module.params, vm_migrate.ensure, check_mode=module.check_mode)
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
