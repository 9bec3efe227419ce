#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_vm
short_description: Run VMs in Cloud Hypervisor
version_added: 0.1.0
description:
  - Makes a VM's TAPs, runs a VMM for it, creates and boots the VM over the VMM's API, and stops and removes it again.
  - A start that fails is undone. A VMM that died is noticed, and what it left is cleaned away.
  - A VM that is known can be named without its other options; those on record count then.
  - Most VMs say O(name), O(cpus), O(memory), O(payload), O(disks) and O(nets), and how they are run by O(state), O(apply),
    O(wait_for) and O(limits). The other options are for what Cloud Hypervisor can do beside.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
requirements:
  - cloud-hypervisor v43 or later
extends_documentation_fragment:
  - microvm.cloud_hypervisor.vm
  - microvm.cloud_hypervisor.bulk
  - microvm.cloud_hypervisor.bulk.vmm
  - microvm.cloud_hypervisor.bulk.attributes
options:
  capacity:
    description:
      - How many times over what the host has may be promised to its VMs, those on record, whether they run or not. A VM that
        does not fit beside the others is refused before anything is made. Two calls at the same time do not both take what
        is there for one.
      - One that is on record and asks for no more than before is never refused.
    type: dict
    version_added: 0.2.0
    suboptions:
      memory_ratio:
        description: For the memory.
        type: float
        default: 1.5
      vcpu_ratio:
        description: For the CPUs. Where it is not given, there may be any number of vCPUs.
        type: float
      disk_ratio:
        description: For what is free where O(state_dir) lies, against what the VMs' disks may still take.
        type: float
        default: 10
seealso:
  - module: microvm.cloud_hypervisor.ch_vm_info
  - module: microvm.cloud_hypervisor.ch_disks
  - module: microvm.cloud_hypervisor.ch_lease
  - module: microvm.cloud_hypervisor.ch_snapshot
  - module: microvm.cloud_hypervisor.ch_upgrade
"""

EXAMPLES = r"""
- name: Run a VM
  microvm.cloud_hypervisor.ch_vm:
    name: web
    cpus: {boot: 2, max: 4}
    memory: {size: 1GiB}
    payload:
      kernel: /var/lib/microvm/images/vmlinuz
      initramfs: /var/lib/microvm/images/initrd
      cmdline: root=/dev/vda1 console=ttyS0
    disks: "{{ built.vms.web.disks }}"
    nets:
      - tap: "{{ leased.vms.web.tap }}"
        mac: "{{ leased.vms.web.mac }}"
        host_address: "{{ leased.vms.web.host_address }}"
        prefix: "{{ leased.vms.web.prefix }}"

- name: Give it more while it runs, as far as that goes, and restart it only where it must be
  microvm.cloud_hypervisor.ch_vm:
    name: web
    apply: restart
    cpus: {boot: 4, max: 4}
    memory: {size: 2GiB, hotplug_size: 4GiB}
    payload:
      kernel: /var/lib/microvm/images/vmlinuz
      initramfs: /var/lib/microvm/images/initrd
      cmdline: root=/dev/vda1 console=ttyS0
    disks:
      - id: root
        path: /var/lib/microvm/vms/web/root.qcow2
        backing_files: true
        rate_limit: {bandwidth: 200MiB, ops: 5000}
      - id: scratch
        path: /var/lib/microvm/vms/web/scratch.raw
        size: 20GiB

- name: Run a VM and go on once its service answers
  microvm.cloud_hypervisor.ch_vm:
    name: web
    wait_for:
      timeout: 300
      cloud_init: true
      address: 10.0.0.2
      http:
        - port: 8080
          path: /health
          body: '"status": *"up"'

- name: Stop it, with a minute for the guest
  microvm.cloud_hypervisor.ch_vm:
    name: web
    state: stopped
    grace: 60
  register: stopped

- name: Say what it took
  ansible.builtin.debug:
    msg: "{{ stopped.vms.web.stopped_by }}"

- name: Remove two VMs
  microvm.cloud_hypervisor.ch_vm:
    state: absent
    vms:
      - name: web
      - name: db
"""

RETURN = r"""
vms:
  description:
    - What each VM is, by its name. RV(ignore:state) is V(running), V(paused), V(created), V(stopped) or V(absent).
    - C(ready_after) has, for each thing that was waited for, after how many seconds it was there.
    - C(restart_required) is whether the VM runs otherwise than it is asked to, and C(restart_reasons) say in what, and why
      that has not been changed while it runs.
    - C(stopped_by) is what ended a VM that was stopped, V(power_button), V(vm_shutdown), V(vmm_shutdown), V(term) or
      V(kill), and null where nothing was stopped.
    - C(user) is whom the VMM runs as, null for root. C(enabled) is whether the VM comes back with the host, null where
      no unit says.
    - C(ended) is how a VM that does not run has ended, by C(reason), V(stopped), V(guest_shutdown), V(crashed),
      V(oom_killed), V(start_failed) or V(host_down), and C(detail). It is null for one that runs or was never started.
  returned: always
  type: dict
  sample:
    web:
      changed: true
      actions: [recorded what is asked, start, boot]
      state: running
      supervisor: systemd
      user: vm-web
      enabled: true
      ended: null
      pid: 4711
      pty: null
      console_pty: null
      api_socket: /run/microvm/web/api.sock
      vsock_socket: null
      serial_socket: null
      event_log: /run/microvm/web/events.json
      serial_log: /var/lib/microvm/vms/web/serial.log
      vmm_version: 53.0.0
      taps: [chtap0]
      labels: {}
      ready_after: {"tcp port 22": 4.2}
      stopped_by: null
      restart_required: false
      restart_reasons: []
"""

from functools import partial

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import capacity, vm_bulk, vm_ready
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import report, run_each
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_options import VM_OPTIONS


def main() -> None:
    """Run the module."""
    capacity_option = {"type": "dict", "options": capacity.RATIO_OPTIONS, "apply_defaults": True}
    module = AnsibleModule(
        argument_spec=vm_bulk.argument_spec(VM_OPTIONS, capacity=capacity_option), supports_check_mode=True
    )
    state_dir, run_dir = vm_bulk.places(module.params)
    here = {"state_dir": state_dir, "run_dir": run_dir, "check_mode": module.check_mode}
    ensure = partial(vm_ready.ensure, **here, runner=HostRunner())
    try:
        items = vm_bulk.items(module.params, "capacity")
        ratios = capacity.Ratios(**module.params["capacity"])
        with capacity.admitted(items, ratios, **here) as refused:
            let_in = [item for item in items if item["name"] not in refused]
            outcomes = {**refused, **run_each(let_in, ensure, workers=module.params["workers"])}
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**report(outcomes))


if __name__ == "__main__":
    main()
