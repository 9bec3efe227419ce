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
author:
  - The microvm.cloud_hypervisor developers (@microvm)
requirements:
  - cloud-hypervisor v43 or later
  - the Python library requests-unixsocket
extends_documentation_fragment:
  - microvm.cloud_hypervisor.bulk
  - microvm.cloud_hypervisor.bulk.attributes
options:
  name: &name
    description: The VM's name, a lower-case host name label.
    type: str
  state: &state
    description:
      - What the VM is brought to. The default is V(running).
      - V(present) records the options and starts nothing; a VM that runs goes on.
      - V(restarted) stops and starts the VM, and so changes something on each run.
      - V(absent) stops it and removes what this module made. Disks stay.
    type: str
    choices: [present, running, paused, stopped, restarted, absent]
  apply: &apply
    description:
      - What happens to a VM that runs with options other than these. The default is V(none), which only reports
        C(restart_required), with V(restart) it is restarted.
    type: str
    choices: [none, restart]
  vmm: &vmm
    description: The VMM's binary, as a path or a name on C(PATH). The default is V(cloud-hypervisor).
    type: str
  cpus: &cpus
    description: The vCPUs.
    type: dict
    suboptions:
      boot:
        description: How many the VM boots with. The default is V(1).
        type: int
      max:
        description: How many it can be given while it runs. The default is O(cpus.boot).
        type: int
  memory: &memory
    description: The memory.
    type: dict
    suboptions:
      size:
        description: How much the VM boots with. The default is V(512MiB).
        type: str
      hotplug_size:
        description: How much more it can be given while it runs.
        type: str
      shared:
        description: Whether it is shared with other processes, which vhost-user devices need.
        type: bool
      hugepages:
        description: Whether it is in huge pages.
        type: bool
      mergeable:
        description: Whether the host's kernel may merge pages that are alike.
        type: bool
  payload: &payload
    description: What the VM boots, either a kernel or a firmware.
    type: dict
    suboptions:
      kernel:
        description: The kernel's path.
        type: path
      initramfs:
        description: The initramfs' path.
        type: path
      cmdline:
        description: The kernel's command line.
        type: str
      firmware:
        description: The path of a firmware that finds the kernel on the first disk.
        type: path
  disks: &disks
    description: The disks, in the order in which the guest sees them; M(microvm.cloud_hypervisor.ch_disks) returns them.
    type: list
    elements: dict
    suboptions:
      id:
        description: The disk's name in the VMM. The default is C(disk) and its position.
        type: str
      path:
        description: The image's path.
        type: path
      image_type:
        description:
          - The image's format, which is never guessed from the content, since that is the guest's to write. The default
            is V(qcow2) for a name that ends so, else V(raw).
          - Releases before v51 cannot be told, and do guess.
        type: str
        choices: [raw, qcow2]
      readonly:
        description: Whether the guest can only read it.
        type: bool
      backing_files:
        description: Whether a V(qcow2) image may name another file that it is based on.
        type: bool
      serial:
        description: What the guest sees as the disk's serial, at most 20 bytes.
        type: str
  nets: &nets
    description: The NICs.
    type: list
    elements: dict
    suboptions:
      id:
        description: The NIC's name in the VMM. The default is C(net) and its position.
        type: str
      tap:
        description: The TAP's name. It is made unless it is there.
        type: str
      mac:
        description: The guest's MAC.
        type: str
      host_address:
        description: The host's IPv4 address on the TAP.
        type: str
      prefix:
        description: The length of its prefix.
        type: int
      host_address6:
        description: The host's IPv6 address on the TAP.
        type: str
      prefix6:
        description: The length of its prefix.
        type: int
  serial: &serial
    description: The serial port.
    type: dict
    suboptions:
      mode:
        description: Where it leads. The default is V(file).
        type: str
        choices: [file, pty, socket, "null", "off"]
      file:
        description: The file, for V(file). The default is C(serial.log) in the VM's directory.
        type: path
  console: &console
    description: The virtio console.
    type: dict
    suboptions:
      mode:
        description: Where it leads. The default is V(off).
        type: str
        choices: [file, pty, "null", "off"]
      file:
        description: The file, for V(file).
        type: path
  vsock: &vsock
    description: A socket between host and guest without a network. The host's side is C(vsock.sock) in the run directory.
    type: dict
    suboptions:
      cid:
        description: The guest's context id, at least 3.
        type: int
  rng: &rng
    description: Where the guest's entropy comes from.
    type: dict
    suboptions:
      src:
        description: The file. The default is V(/dev/urandom).
        type: path
  watchdog: &watchdog
    description: Whether the VM has a watchdog that resets it. The default is V(false).
    type: bool
  platform: &platform
    description: What the guest reads about its machine in DMI.
    type: dict
    suboptions:
      serial_number:
        description: The machine's serial number.
        type: str
      uuid:
        description: The machine's UUID.
        type: str
      oem_strings:
        description: Strings for the guest to read.
        type: list
        elements: str
  grace: &grace
    description:
      - How many seconds a guest has after the power button before it is shut down without its doing. The default is V(30).
      - With V(0) the button is not pressed.
    type: int
  boot_timeout: &boot_timeout
    description: How many seconds the boot may take until the VMM holds its TAPs. The default is V(30).
    type: int
  wait_for: &wait_for
    description:
      - What a VM that is brought to V(running) or V(restarted) must reach before the task ends; all that is given counts.
      - Where it is not reached, the task fails with the ends of the serial log, the events and the VMM's log, the VM goes on
        running, and the next run waits again.
      - A VM that was ready in this boot of its guest is not waited for again. Its ports are asked for once more, for 5 seconds.
      - In check mode nothing is waited for; the actions tell what would be.
    type: dict
    version_added: 0.2.0
    suboptions:
      timeout:
        description: How many seconds it may take. The default is V(120).
        type: int
      api:
        description: Whether the VMM says that the VM runs.
        type: bool
      tap:
        description: Whether the VMM holds all TAPs.
        type: bool
      serial:
        description:
          - A regular expression (Python's) that is found in what the guest has written to its serial port in this boot.
          - A port in the mode V(pty) or V(socket) has one reader at a time. A person who is attached there loses what this reads.
        type: str
      cloud_init:
        description: Whether cloud-init's final message has come on the serial port.
        type: bool
      notify:
        description:
          - Whether the guest has reported READY=1 over vsock. It is told where by systemd's credential C(vmm.notify_socket),
            which is added to the VM's OEM strings. systemd 254 and later do it by themselves.
        type: bool
      address:
        description: The guest's address, for ports. The default is the label C(address), which the role vm gives.
        type: str
      tcp:
        description: TCP ports that take connections, asked for through the first NIC's TAP.
        type: list
        elements: int
      http:
        description: URLs that answer, asked for through the first NIC's TAP.
        type: list
        elements: dict
        suboptions:
          port:
            description: The port. The default is V(80).
            type: int
          path:
            description: The path, with its query. The default is V(/).
            type: str
          status:
            description: The status it answers with. The default is V(200).
            type: int
          body:
            description: A regular expression that is found in the answer's body.
            type: str
  supervisor: &supervisor
    description:
      - What runs the VMM. V(systemd) is an instance of the template unit that the role P(microvm.cloud_hypervisor.host#role)
        installs; the VM then comes back with the host, its VMM runs as a user of its own in a sandbox, and O(limits) and
        O(restart) count. V(process) is a process of root's in a session of its own.
      - The default is V(auto), which is V(systemd) where systemd runs the host and the unit is installed.
      - A VMM that runs stays where it is until it is stopped.
    type: str
    choices: [auto, systemd, process]
    version_added: 0.2.0
  unit: &unit
    description: The template unit's name, without C(@.service). The default is V(microvm).
    type: str
    version_added: 0.2.0
  restart: &restart
    description:
      - Whether systemd starts the VM again when its VMM has ended by itself. The default is V(on-failure), which is so for
        a VMM that crashed or was killed, and not for a guest that powered off; with V(always) that one starts again, too.
      - Needs a unit; see O(supervisor).
    type: str
    choices: ["no", on-failure, always]
    version_added: 0.2.0
  restart_limit: &restart_limit
    description: How often that may happen. Then the VM stays stopped, until it is asked for again.
    type: dict
    version_added: 0.2.0
    suboptions:
      burst:
        description: How many starts. The default is V(5).
        type: int
      seconds:
        description: Within how many seconds. The default is V(300).
        type: int
  limits: &limits
    description:
      - What the VM may use of its host, VMM and guest together. A change counts at once.
      - Needs a unit; see O(supervisor).
    type: dict
    version_added: 0.2.0
    suboptions:
      cpu_quota:
        description: The share of CPU time, where V(100%) is one CPU. The default is no limit.
        type: str
      cpu_weight:
        description: The share where CPUs are scarce, V(1) to V(10000). The default is V(100).
        type: int
      memory_max:
        description:
          - The memory. A VM that uses more is killed. The default is the most that the guest can have, and 256MiB for the
            VMM; V(infinity) is no limit.
        type: str
      io_weight:
        description: The share where the disk is busy, V(1) to V(10000). The default is V(100).
        type: int
      io_read_max:
        description: How many bytes a second are read from the disk that holds the VM's directory. The default is no limit.
        type: str
      io_write_max:
        description: How many bytes a second are written to it. The default is no limit.
        type: str
      tasks_max:
        description: How many processes and threads there may be. The default is systemd's.
        type: int
  labels: &labels
    description: What you want to know of the VM later, such as its image; M(microvm.cloud_hypervisor.ch_vm_info) returns it.
    type: dict
  vms:
    description: A list of VMs, each with the options of this module; what is given beside it is each item's default.
    type: list
    elements: dict
    suboptions:
      name: *name
      state: *state
      apply: *apply
      vmm: *vmm
      cpus: *cpus
      memory: *memory
      payload: *payload
      disks: *disks
      nets: *nets
      serial: *serial
      console: *console
      vsock: *vsock
      rng: *rng
      watchdog: *watchdog
      platform: *platform
      grace: *grace
      boot_timeout: *boot_timeout
      wait_for: *wait_for
      supervisor: *supervisor
      unit: *unit
      restart: *restart
      restart_limit: *restart_limit
      limits: *limits
      labels: *labels
  capacity:
    description:
      - How many times over what the host has may be promised to its VMs, those on record, whether they run or not. A VM that
        does not fit beside the others is refused before anything is made.
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
  state_dir:
    description: The directory in which each VM has its own, C(vms/NAME), for what is kept over a reboot.
    type: path
    default: /var/lib/microvm
  run_dir:
    description: The directory in which each VM that runs has its own, for sockets and the process id.
    type: path
    default: /run/microvm
seealso:
  - module: microvm.cloud_hypervisor.ch_vm_info
  - module: microvm.cloud_hypervisor.ch_disks
  - module: microvm.cloud_hypervisor.ch_lease
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
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import capacity, vm_ready, vmm_api
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import report, requested, run_each
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner


def console_options(*modes: str) -> dict[str, object]:
    """Return the spec of a console."""
    return {"type": "dict", "options": {"mode": {"type": "str", "choices": list(modes)}, "file": {"type": "path"}}}


DISK_OPTIONS = {
    "id": {"type": "str"},
    "path": {"type": "path"},
    "image_type": {"type": "str", "choices": ["raw", "qcow2"]},
    "readonly": {"type": "bool"},
    "backing_files": {"type": "bool"},
    "serial": {"type": "str"},
}
NET_OPTIONS = {
    "id": {"type": "str"},
    "tap": {"type": "str"},
    "mac": {"type": "str"},
    "host_address": {"type": "str"},
    "prefix": {"type": "int"},
    "host_address6": {"type": "str"},
    "prefix6": {"type": "int"},
}
HTTP_OPTIONS = {
    "port": {"type": "int"},
    "path": {"type": "str"},
    "status": {"type": "int"},
    "body": {"type": "str"},
}
WAIT_FOR_OPTIONS = {
    "timeout": {"type": "int"},
    "api": {"type": "bool"},
    "tap": {"type": "bool"},
    "serial": {"type": "str"},
    "cloud_init": {"type": "bool"},
    "notify": {"type": "bool"},
    "address": {"type": "str"},
    "tcp": {"type": "list", "elements": "int"},
    "http": {"type": "list", "elements": "dict", "options": HTTP_OPTIONS},
}
CAPACITY_OPTIONS = {
    "memory_ratio": {"type": "float", "default": 1.5},
    "vcpu_ratio": {"type": "float"},
    "disk_ratio": {"type": "float", "default": 10.0},
}
LIMIT_OPTIONS = {
    "cpu_quota": {"type": "str"},
    "cpu_weight": {"type": "int"},
    "memory_max": {"type": "str"},
    "io_weight": {"type": "int"},
    "io_read_max": {"type": "str"},
    "io_write_max": {"type": "str"},
    "tasks_max": {"type": "int"},
}
VM_OPTIONS = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "running", "paused", "stopped", "restarted", "absent"]},
    "apply": {"type": "str", "choices": ["none", "restart"]},
    "vmm": {"type": "str"},
    "cpus": {"type": "dict", "options": {"boot": {"type": "int"}, "max": {"type": "int"}}},
    "memory": {
        "type": "dict",
        "options": {
            "size": {"type": "str"},
            "hotplug_size": {"type": "str"},
            "shared": {"type": "bool"},
            "hugepages": {"type": "bool"},
            "mergeable": {"type": "bool"},
        },
    },
    "payload": {
        "type": "dict",
        "options": {
            "kernel": {"type": "path"},
            "initramfs": {"type": "path"},
            "cmdline": {"type": "str"},
            "firmware": {"type": "path"},
        },
    },
    "disks": {"type": "list", "elements": "dict", "options": DISK_OPTIONS},
    "nets": {"type": "list", "elements": "dict", "options": NET_OPTIONS},
    "serial": console_options("file", "pty", "socket", "null", "off"),
    "console": console_options("file", "pty", "null", "off"),
    "vsock": {"type": "dict", "options": {"cid": {"type": "int"}}},
    "rng": {"type": "dict", "options": {"src": {"type": "path"}}},
    "watchdog": {"type": "bool"},
    "platform": {
        "type": "dict",
        "options": {
            "serial_number": {"type": "str"},
            "uuid": {"type": "str"},
            "oem_strings": {"type": "list", "elements": "str"},
        },
    },
    "grace": {"type": "int"},
    "boot_timeout": {"type": "int"},
    "wait_for": {"type": "dict", "options": WAIT_FOR_OPTIONS},
    "supervisor": {"type": "str", "choices": ["auto", "systemd", "process"]},
    "unit": {"type": "str"},
    "restart": {"type": "str", "choices": ["no", "on-failure", "always"]},
    "restart_limit": {"type": "dict", "options": {"burst": {"type": "int"}, "seconds": {"type": "int"}}},
    "limits": {"type": "dict", "options": LIMIT_OPTIONS},
    "labels": {"type": "dict"},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **VM_OPTIONS,
            "vms": {"type": "list", "elements": "dict", "options": VM_OPTIONS},
            "capacity": {"type": "dict", "options": CAPACITY_OPTIONS, "apply_defaults": True},
            "workers": {"type": "int", "default": 8},
            "state_dir": {"type": "path", "default": "/var/lib/microvm"},
            "run_dir": {"type": "path", "default": "/run/microvm"},
        },
        supports_check_mode=True,
    )
    if not vmm_api.HAS_REQUESTS_UNIXSOCKET:
        module.fail_json(
            msg=missing_required_lib("requests-unixsocket"), exception=vmm_api.REQUESTS_UNIXSOCKET_IMPORT_ERROR
        )
    places = {"state_dir": Path(module.params["state_dir"]), "run_dir": Path(module.params["run_dir"])}
    ensure = partial(vm_ready.ensure, **places, runner=HostRunner(), check_mode=module.check_mode)
    try:
        items = requested(module.params, shared=["capacity", "workers", "state_dir", "run_dir"])
        refused = capacity.refuse(items, capacity.Ratios(**module.params["capacity"]), **places)
        let_in = [item for item in items if item["name"] not in refused]
        outcomes = {**refused, **run_each(let_in, ensure, workers=module.params["workers"])}
    except MicrovmError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**report(outcomes))


if __name__ == "__main__":
    main()
