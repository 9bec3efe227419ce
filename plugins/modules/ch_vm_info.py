#!/usr/bin/python
# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ch_vm_info
short_description: Tell about VMs in Cloud Hypervisor
version_added: 0.1.0
description:
  - Returns what M(microvm.cloud_hypervisor.ch_vm) knows of the VMs on a host, and what their VMMs say. Changes nothing.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
extends_documentation_fragment:
  - microvm.cloud_hypervisor.bulk
  - microvm.cloud_hypervisor.bulk.vmm
  - microvm.cloud_hypervisor.bulk.info
options:
  names:
    description: The VMs' names. The default is all that are known on the host.
    type: list
    elements: str
seealso:
  - module: microvm.cloud_hypervisor.ch_vm
"""

EXAMPLES = r"""
- name: Ask for all VMs
  microvm.cloud_hypervisor.ch_vm_info:
  register: info

- name: Show those that do not run
  ansible.builtin.debug:
    msg: "{{ info.vms | dict2items | rejectattr('value.state', 'equalto', 'running') | map(attribute='key') }}"
"""

RETURN = r"""
vms:
  description:
    - What each VM is, by its name; what M(microvm.cloud_hypervisor.ch_vm) returns and some more.
    - C(memory_actual_size) is the guest's memory in bytes, without what the balloon holds.
    - C(cgroup) is what the host counts for the VM's unit, C(memory_bytes) and C(cpu_seconds); it is empty without a unit.
    - C(vmm_died) is true where a VMM has ended without having been stopped. C(uptime) is in seconds.
  returned: always
  type: dict
  sample:
    web:
      changed: false
      actions: []
      state: running
      supervisor: systemd
      user: vm-web
      enabled: true
      ended: null
      pid: 4711
      uptime: 86400
      vmm_died: false
      vmm_version: 53.0.0
      api_socket: /run/microvm/web/api.sock
      vsock_socket: null
      serial_socket: null
      event_log: /run/microvm/web/events.json
      serial_log: /var/lib/microvm/vms/web/serial.log
      pty: null
      console_pty: null
      taps: [chtap0]
      labels: {}
      config: {}
      counters: {}
      memory_actual_size: 536870912
      cgroup: {memory_bytes: 151248896, cpu_seconds: 12.5}
host:
  description:
    - What the host has, and what of it is promised to the VMs on record, whether they run or not. Sizes are in bytes.
    - C(disk_free) is what is free where O(state_dir) lies, C(promised_disk) what the VMs' disks may still take of it.
  returned: always
  type: dict
  sample:
    memory: 25275179008
    vcpus: 8
    disk_free: 78383153152
    promised_memory: 1073741824
    promised_vcpus: 4
    promised_disk: 21474836480
"""

from functools import partial
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import capacity, vm_facts, vm_record, vmm_api
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import report, run_each
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str"},
            "workers": {"type": "int", "default": 8},
            "state_dir": {"type": "path", "default": "/var/lib/microvm"},
            "run_dir": {"type": "path", "default": "/run/microvm"},
        },
        supports_check_mode=True,
    )
    try:
        vmm_api.require_library()
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    state_dir, run_dir = Path(module.params["state_dir"]), Path(module.params["run_dir"])
    names = vm_record.known(state_dir) if module.params["names"] is None else module.params["names"]
    gather = partial(vm_facts.gather, state_dir=state_dir, run_dir=run_dir, runner=HostRunner())
    outcomes = run_each([{"name": name} for name in names], gather, workers=module.params["workers"])
    host = capacity.facts(capacity.read_host(state_dir), capacity.promised(state_dir))
    module.exit_json(**report(outcomes), host=host)


if __name__ == "__main__":
    main()
