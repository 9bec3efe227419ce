#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_snapshot
short_description: Snapshot VMs, go back to a snapshot, and clone VMs
version_added: 0.2.0
description:
  - A snapshot holds the VM's disks and, of one that runs or is paused, its memory and devices, all of the same moment.
    The guest is paused while they are written, and runs on whatever happens.
  - Disks share blocks with their copies where the file system can (XFS, Btrfs); elsewhere they are copied with their
    holes, and the guest stands still for that long.
  - Snapshots are in C(snapshots/VM/NAME) in the state directory, for root alone, with the digest of each file. One
    appears when it is whole. What a run that was killed has left is removed by the next one, which also resumes the guest
    if that run had paused it.
  - They stay when the VM is removed.
  - Cloud Hypervisor reads the memory only of its own version. Disks alone can be restored with any.
  - Where a VMM dies in the middle, its guest is lost. It is started again from its disks, and the task fails and says so.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
extends_documentation_fragment:
  - microvm.cloud_hypervisor.bulk
  - microvm.cloud_hypervisor.bulk.vmm
  - microvm.cloud_hypervisor.bulk.attributes
attributes:
  idempotent:
    support: partial
    details:
      - V(present) with a name, V(absent) and V(cloned) are. V(restored) goes back each time, and V(present) without a
        name makes another one.
options:
  name: &name
    description: The VM's name. With O(state=cloned), that of the new VM.
    type: str
  state: &state
    description:
      - V(present) makes a snapshot unless there is one of this name. It is the default.
      - V(restored) brings the VM back to it, to its options and disks of then, and lets it run. What came after is lost.
      - V(cloned) makes the root disk and the data disks of a new VM from those in O(source). Provision the new VM then,
        as the role P(microvm.cloud_hypervisor.vm#role) does. It boots as a new instance, with its own lease, MAC, vsock
        context id, host name and instance id.
      - A clone does not take over memory. The guest's memory holds its MAC, addresses, host name and keys, which no VMM
        can change, so that two guests would claim to be one.
      - V(absent) removes it, or without O(snapshot) all but the newest O(keep).
    type: str
    choices: [present, restored, cloned, absent]
  snapshot: &snapshot
    description: The snapshot's name. With O(state=present) the default is the time in UTC, such as C(20260131T235959Z).
    type: str
  memory: &memory
    description:
      - Whether memory and devices are in the snapshot, or are restored. The default is yes where they are there.
      - With V(false), the guest boots from disks as they were at that moment, as after a power cut.
    type: bool
  keep: &keep
    description: How many snapshots of the VM stay; of those beyond, the oldest are removed.
    type: int
  verify: &verify
    description: Whether a snapshot's files are compared with their digests before it is restored or cloned. The default is V(true).
    type: bool
  source: &source
    description: The snapshot that O(state=cloned) takes the disks from.
    type: dict
    suboptions:
      name:
        description: Its VM.
        type: str
      snapshot:
        description: Its name.
        type: str
  accept_unflushed: &accept_unflushed
    description:
      - Whether a guest is snapshotted with its memory though it has a qcow2 disk that it can write. The default is V(false).
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
      snapshot: *snapshot
      memory: *memory
      keep: *keep
      verify: *verify
      source: *source
      accept_unflushed: *accept_unflushed
  state_dir:
    description: The directory with C(vms/NAME) and C(snapshots/NAME).
    type: path
    default: /var/lib/microvm
seealso:
  - module: microvm.cloud_hypervisor.ch_snapshot_info
  - module: microvm.cloud_hypervisor.ch_vm
  - module: microvm.cloud_hypervisor.ch_disks
"""

EXAMPLES = r"""
- name: Snapshot two VMs before an upgrade
  microvm.cloud_hypervisor.ch_snapshot:
    snapshot: before-upgrade
    vms:
      - name: web
      - name: db

- name: Go back
  microvm.cloud_hypervisor.ch_snapshot:
    name: web
    snapshot: before-upgrade
    state: restored

- name: Every night, the disks alone, for a week
  microvm.cloud_hypervisor.ch_snapshot:
    name: db
    memory: false
    keep: 7

- name: Clone the disks of a VM that is then provisioned under a name of its own
  microvm.cloud_hypervisor.ch_snapshot:
    name: web-test
    state: cloned
    source:
      name: web
      snapshot: before-upgrade
"""

RETURN = r"""
vms:
  description:
    - What was reached for each VM, by its name.
    - C(snapshot) is the one that was asked for, C(snapshots) are all of the VM, the oldest first, with their sizes in
      bytes. C(memory) is whether memory is in one.
    - C(paused_seconds) is for how long the guest stood still.
  returned: always
  type: dict
  sample:
    web:
      changed: true
      actions: [made before-upgrade]
      paused_seconds: 0.412
      snapshot: &sample
        name: before-upgrade
        path: /var/lib/microvm/snapshots/web/before-upgrade
        created: "2026-01-31T23:59:59.000000+00:00"
        memory: true
        vmm_version: 53.0.0
        size: 1073741824
      snapshots: [*sample]
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_bulk, vm_restore, vm_snapshot
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

VM_OPTIONS = {
    "name": {"type": "str"},
    "accept_unflushed": {"type": "bool"},
    "state": {"type": "str", "choices": ["present", "restored", "cloned", "absent"]},
    "snapshot": {"type": "str"},
    "memory": {"type": "bool"},
    "keep": {"type": "int"},
    "verify": {"type": "bool"},
    "source": {"type": "dict", "options": {"name": {"type": "str"}, "snapshot": {"type": "str"}}},
}
WORK = {"restored": vm_restore.restore, "cloned": vm_restore.clone}


def ensure(item: Mapping[str, Any], **host: Any) -> Outcome:
    """Do what one VM's options say."""
    return WORK.get(item.get("state") or "present", vm_snapshot.ensure)(item, **host)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=vm_bulk.argument_spec(VM_OPTIONS), supports_check_mode=True)
    try:
        result = vm_bulk.run(module.params, ensure, check_mode=module.check_mode)
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
