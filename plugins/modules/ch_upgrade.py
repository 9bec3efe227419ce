#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_upgrade
short_description: Move running VMs to the VMM that is installed now, without a reboot
version_added: 0.2.0
description:
  - A VM runs on in the VMM that it was started with, whatever is installed later. This module starts a VMM of the
    installed version beside it and migrates the guest, which goes on where it was.
  - The guest stands still for a moment where its memory is shared
    (O(microvm.cloud_hypervisor.ch_vm#module:memory.shared)) or in huge pages. Other memory is copied while the guest
    runs, and its network stands still for that long. Connections survive.
  - The VM's TAPs, its vsock socket, its serial socket and log keep their names. A pty may have another one afterwards.
  - A move that fails leaves the guest in the VMM that it was in. Where a VMM dies of it, the guest is lost. It is started again
    from its disks, and the task fails and says so.
  - A run that was killed is finished or undone by the next one, or by one of M(microvm.cloud_hypervisor.ch_vm).
  - A VM that is stopped needs nothing. It starts in what is installed then.
  - Where the VMM is the main process of a systemd unit, it is the unit itself that moves the VM, as its reload. Both VMMs run in the
    unit's sandbox, and the new one is its main process afterwards. The unit is not restarted, and what it says is as before.
  - For the time of the move the unit may use the guest's memory twice. A C(systemctl stop) in that time leaves the guest no grace.
  - The program C(microvm) on the host must be of this release; the role P(microvm.cloud_hypervisor.host#role) installs it.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
extends_documentation_fragment:
  - microvm.cloud_hypervisor.bulk
  - microvm.cloud_hypervisor.bulk.vmm
  - microvm.cloud_hypervisor.bulk.attributes
options:
  name: &name
    description: The VM's name.
    type: str
  vmm: &vmm
    description:
      - The VMM to move to, a path or the name of a command. It is on record for the next start.
      - The default is the one on record, which is then expected to have been replaced by a newer version.
    type: str
  force: &force
    description: Whether the guest is moved even where it runs in that version already. The default is V(false).
    type: bool
  timeout: &timeout
    description: For how many seconds a move may take before it is given up, and the guest stays. The default is V(600).
    type: int
  accept_unflushed: &accept_unflushed
    description:
      - Whether a guest is moved though it has a qcow2 disk that it can write. The default is V(false).
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
      vmm: *vmm
      force: *force
      timeout: *timeout
      accept_unflushed: *accept_unflushed
seealso:
  - module: microvm.cloud_hypervisor.ch_vm
"""

EXAMPLES = r"""
- name: Install another version
  ansible.builtin.get_url:
    url: https://github.com/cloud-hypervisor/cloud-hypervisor/releases/download/v53.0/cloud-hypervisor-static
    dest: /usr/local/bin/cloud-hypervisor
    mode: "0755"

- name: Move two VMs to it, one after the other
  microvm.cloud_hypervisor.ch_upgrade:
    workers: 1
    vms:
      - name: web
      - name: db
"""

RETURN = r"""
vms:
  description:
    - What was reached for each VM, by its name.
    - C(vmm_version_before) is none where the VM does not run.
  returned: always
  type: dict
  sample:
    web:
      changed: true
      actions: [moved the guest from v52.0 to v53.0]
      vmm_version_before: "52.0"
      vmm_version: "53.0"
      pid: 4711
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_bulk, vm_upgrade
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

VM_OPTIONS = {
    "name": {"type": "str"},
    "accept_unflushed": {"type": "bool"},
    "vmm": {"type": "str"},
    "force": {"type": "bool"},
    "timeout": {"type": "int"},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=vm_bulk.argument_spec(VM_OPTIONS), supports_check_mode=True)
    try:
        result = vm_bulk.run(module.params, vm_upgrade.ensure, check_mode=module.check_mode)
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
