#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_disks
short_description: Build the disks of VMs
version_added: 0.1.0
description:
  - Makes a VM's root disk from a base image, a CIDATA disk for cloud-init, a service disk with the program that the VM is
    there for, and data disks that are kept for the VM's life.
  - Images are readable by root alone. A disk takes its name only when it is whole, and an unchanged input changes nothing.
  - Program and keystore are read on the controller, as M(ansible.builtin.copy) does, and only what a host misses is sent
    to it, once for all its VMs. Files encrypted with Ansible Vault are decrypted.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
extends_documentation_fragment:
  - microvm.cloud_hypervisor.bulk
  - microvm.cloud_hypervisor.bulk.attributes
options:
  name: &name
    description: The VM's name, a lower-case host name label.
    type: str
  state: &state
    description:
      - Whether the VM has disks. The default is V(present).
      - With V(absent), all of its disks are removed, the data disks too. Disks that a running VM has open are not.
    type: str
    choices: [present, absent]
  image: &image
    description:
      - The raw image on the host that the root disk begins as, such as RV(microvm.cloud_hypervisor.ch_image#module:images).
      - A root disk that is there already is kept as it is; RV(vms) says in C(root_outdated) that it was made of another.
    type: path
  root: &root
    description: How the root disk is made.
    type: dict
    suboptions:
      mode:
        description:
          - V(reflink) shares blocks with O(image) where the file system can, such as XFS and Btrfs. V(overlay) is a
            qcow2 image that holds what differs from O(image); it needs Cloud Hypervisor v51.0 or later. V(copy) is a full,
            sparse copy.
          - The default is V(auto), which is V(reflink) where it can be and else V(overlay).
        type: str
        choices: [auto, reflink, overlay, copy]
      size:
        description: Its size, such as V(40GiB), at least that of O(image), which is the default. It grows, and never shrinks.
        type: str
  boot: &boot
    description:
      - What boots O(image), to be kept with the root disk and returned.
      - A root disk that was made of an earlier image keeps what boots that, since a kernel does not find its modules on the
        disk of another. RV(vms) says in C(boot) what it is.
    type: dict
    version_added: 0.2.0
    suboptions:
      kernel:
        description: The kernel's path.
        type: path
      initramfs:
        description: The initramfs' path.
        type: path
      firmware:
        description: The firmware's path.
        type: path
  cidata: &cidata
    description:
      - The documents of a cloud-init NoCloud data source, on a disk labelled C(CIDATA). Without it the VM has no such disk.
      - The user data and the meta data are needed.
    type: dict
    suboptions:
      user_data:
        description: The user data, as text.
        type: str
      meta_data:
        description: The meta data, as text.
        type: str
      network_config:
        description: The network configuration, as text.
        type: str
  service: &service
    description:
      - The files of the service, on a disk labelled C(SERVICEDISK) that the guest mounts on C(/srv).
        Without it the VM has no such disk.
    type: dict
    suboptions:
      binary:
        description: The program or script, which becomes C(/srv/service).
        type: str
        required: true
      keystore:
        description: A directory of any depth, which becomes C(/srv/keystore). Symbolic links in it are refused.
        type: str
      launch:
        description: How C(/srv/launch) starts the program. Every value arrives exactly as it is written.
        type: dict
        suboptions:
          arguments:
            description: The program's arguments, each a string or a whole number.
            type: list
            elements: raw
          environment:
            description: The program's environment variables, each a string or a whole number.
            type: dict
          workdir:
            description: The directory in the guest that it starts in, an absolute path.
            type: str
      remote_src:
        description: Whether the files lie on the host and not on the controller.
        type: bool
        default: false
  data: &data
    description:
      - Data disks. A second run and a restart never touch what is in them.
      - One that is no longer in the list is kept, and named in C(unused_data).
    type: list
    elements: dict
    suboptions:
      name:
        description: The disk's name, of at most 15 characters. The guest sees C(data-NAME) as its serial.
        type: str
        required: true
      size:
        description:
          - Its size, such as V(10GiB). It grows, and never shrinks.
          - One that a running VM has open is left to M(microvm.cloud_hypervisor.ch_vm), which grows it by the size in C(disks).
        type: str
        required: true
      format:
        description:
          - What its image is. V(qcow2) is the default. Both take no more of the host's disk than the guest has written to.
          - V(raw) is for guests that are to be moved, or snapshotted with their memory, while they run, see
            O(microvm.cloud_hypervisor.ch_migrate#module:accept_unflushed). It stays what it was made as.
        type: str
        choices: [qcow2, raw]
        version_added: 0.3.0
  vms:
    description: A list of VMs, each with the options of this module; what is given beside it is each item's default.
    type: list
    elements: dict
    suboptions:
      name: *name
      state: *state
      image: *image
      root: *root
      boot: *boot
      cidata: *cidata
      service: *service
      data: *data
  state_dir:
    description: The directory in which each VM has its own, C(vms/NAME).
    type: path
    default: /var/lib/microvm
  _manifests:
    description: What the controller's files hold. From the action plugin; not for you to set.
    type: dict
  _contents:
    description: The files that the host misses. From the action plugin; not for you to set.
    type: path
seealso:
  - module: microvm.cloud_hypervisor.ch_image
  - module: microvm.cloud_hypervisor.ch_vm
"""

EXAMPLES = r"""
- name: Disks for one VM
  microvm.cloud_hypervisor.ch_disks:
    name: web
    image: /var/lib/microvm/images/noble.raw
    service:
      binary: files/web
      keystore: files/keys/web
      launch:
        arguments: ["--listen", ":80"]
        environment:
          TOKEN: "{{ vault_web_token }}"
    data:
      - name: main
        size: 10GiB

- name: Disks for many VMs, with a program that lies on the host
  microvm.cloud_hypervisor.ch_disks:
    image: /var/lib/microvm/images/noble.raw
    root:
      mode: overlay
      size: 40GiB
    service:
      binary: /opt/worker/bin/worker
      remote_src: true
    vms:
      - name: worker-1
      - name: worker-2

- name: Remove the disks of a VM, with all its data
  microvm.cloud_hypervisor.ch_disks:
    name: web
    state: absent
"""

RETURN = r"""
vms:
  description:
    - What each VM has, by its name. C(disks) are in the order of their attachment, in the form that
      O(microvm.cloud_hypervisor.ch_vm#module:disks) takes.
  returned: always
  type: dict
  sample:
    web:
      changed: true
      actions: [made root.qcow2 (overlay), built service.img]
      disks:
        - id: root
          path: /var/lib/microvm/vms/web/root.qcow2
          image_type: qcow2
          readonly: false
          backing_files: true
          serial: root
        - id: service
          path: /var/lib/microvm/vms/web/service.img
          image_type: raw
          readonly: true
          backing_files: false
          serial: service
      root_mode: overlay
      root_outdated: false
      boot:
        kernel: /var/lib/microvm/images/sha256-1d0a...
        initramfs: /var/lib/microvm/images/sha256-9b33...
      unused_data: []
"""

from functools import partial
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.parameters import remove_values

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_disks
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import report, requested, run_each
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.sent_files import unpacked

LAUNCH_OPTIONS = {
    "arguments": {"type": "list", "elements": "raw"},
    "environment": {"type": "dict", "no_log": True},
    "workdir": {"type": "str"},
}
VM_OPTIONS = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"]},
    "image": {"type": "path"},
    "root": {
        "type": "dict",
        "options": {
            "mode": {"type": "str", "choices": ["auto", "reflink", "overlay", "copy"]},
            "size": {"type": "str"},
        },
    },
    "boot": {
        "type": "dict",
        "options": {"kernel": {"type": "path"}, "initramfs": {"type": "path"}, "firmware": {"type": "path"}},
    },
    "cidata": {
        "type": "dict",
        "options": {
            "user_data": {"type": "str", "no_log": True},
            "meta_data": {"type": "str"},
            "network_config": {"type": "str"},
        },
    },
    "service": {
        "type": "dict",
        "options": {
            "binary": {"type": "str", "required": True},
            "keystore": {"type": "str", "no_log": False},
            "launch": {"type": "dict", "options": LAUNCH_OPTIONS},
            "remote_src": {"type": "bool", "default": False},
        },
    },
    "data": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "size": {"type": "str", "required": True},
            "format": {"type": "str", "choices": list(vm_disks.DATA_FORMATS)},
        },
    },
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **VM_OPTIONS,
            "vms": {"type": "list", "elements": "dict", "options": VM_OPTIONS},
            "workers": {"type": "int", "default": 8},
            "state_dir": {"type": "path", "default": "/var/lib/microvm"},
            # From the action plugin: what the controller's files hold, and the archive with those that were missing.
            "_manifests": {"type": "dict"},
            "_contents": {"type": "path"},
        },
        supports_check_mode=True,
    )
    # Ansible hides a secret value wherever it stands in a result: a variable of "80" or "web" would spoil the paths that
    # the next module needs. No result here has a secret but the module's own arguments, so they alone are hidden.
    shown = {"module_args": remove_values(module.params, module.no_log_values)}
    module.no_log_values = set()
    state_dir = Path(module.params["state_dir"])
    try:
        items = requested(module.params, shared=["workers", "state_dir", "_manifests", "_contents"])
        with unpacked(module.params["_contents"], Path(module.tmpdir)) as contents:
            sources = vm_disks.Sources(module.params["_manifests"] or {}, contents)
            if contents is None and not module.check_mode:
                missing = [vm_disks.missing_contents(item, state_dir=state_dir, sources=sources) for item in items]
                if any(missing):
                    module.exit_json(changed=False, missing=sorted(set().union(*missing)), invocation=shown)
            ensure = partial(
                vm_disks.ensure,
                state_dir=state_dir,
                runner=HostRunner(),
                sources=sources,
                check_mode=module.check_mode,
            )
            outcomes = run_each(items, ensure, workers=module.params["workers"])
    except MicrovmError as error:
        module.fail_json(msg=str(error), invocation=shown)
    module.exit_json(**report(outcomes), invocation=shown)


if __name__ == "__main__":
    main()
