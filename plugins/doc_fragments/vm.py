# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import yaml

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_properties import VM
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_schema import documentation

# How a VM is run; what it is comes from the table of its properties.
_RUN = r"""
name:
  description: The VM's name, a lower-case host name label.
  type: str
state:
  description:
    - What the VM is brought to. The default is V(running).
    - V(present) records the options and changes nothing of a VM that runs, which goes on.
    - V(restarted) stops and starts the VM, and so changes something on each run.
    - V(absent) stops it and removes what this module made. Disks stay.
  type: str
  choices: [present, running, paused, stopped, restarted, absent]
apply:
  description:
    - What happens to a VM that runs with options other than these.
    - V(live), the default, makes the changes that need no restart, and reports the others, with C(restart_required) and
      C(restart_reasons).
    - With V(restart) the VM is restarted where something needs it. With V(none) nothing of it is changed, and every change
      is reported.
    - vCPUs and memory change live within their bounds, so do the balloon and a disk's size; disks, NICs and other devices
      come and go. What a guest with a disk or NIC in use would lose by is not done live, see O(replug).
    - Another root disk and a disk that is to be smaller are refused. To have a VM boot from another root disk, stop it first.
  type: str
  choices: [none, live, restart]
replug:
  description:
    - Whether a device whose options have changed, such as its rate limit, is taken from the running guest and plugged in
      again. Otherwise that takes a restart. The default is V(false).
    - A guest loses what it has not written yet to a disk that is in use.
  type: bool
  version_added: 0.2.0
vmm:
  description: The VMM's binary, as a path or a name on C(PATH). The default is V(cloud-hypervisor).
  type: str
grace:
  description:
    - How many seconds a guest has after the power button before it is shut down without its doing. The default is what is
      on record where the VM is named without its other options, and else V(30).
    - With V(0) the button is not pressed.
  type: int
boot_timeout:
  description: How many seconds the boot may take until the VMM holds its TAPs. The default is V(30).
  type: int
labels:
  description: What you want to know of the VM later, such as its image; M(microvm.cloud_hypervisor.ch_vm_info) returns it.
  type: dict
wait_for:
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
        - A guest reports once in a boot. Of one that has come back with its host, or after a crash, this is not waited for.
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
supervisor:
  description:
    - What runs the VMM. V(systemd) is an instance of the template unit that the role P(microvm.cloud_hypervisor.host#role)
      installs; the VM then comes back with the host, its VMM runs as a user of its own in a sandbox, and O(limits) and
      O(restart) count. V(process) is a process of root's in a session of its own, without any capability; where no udev
      runs, root alone may open C(/dev/kvm) and C(/dev/net/tun).
    - The default is V(auto), which is V(systemd) where systemd runs the host and the unit is installed.
    - A VMM that runs stays where it is until it is stopped.
  type: str
  choices: [auto, systemd, process]
  version_added: 0.2.0
unit:
  description: The template unit's name, without C(@.service). The default is V(microvm).
  type: str
  version_added: 0.2.0
restart:
  description:
    - Whether systemd starts the VM again when its VMM has ended by itself. The default is V(on-failure), which is so for
      a VMM that crashed or was killed, and not for a guest that powered off; with V(always) that one starts again, too.
    - Needs a unit; see O(supervisor).
  type: str
  choices: ["no", on-failure, always]
  version_added: 0.2.0
restart_limit:
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
limits:
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
"""
_LIST = r"""
description: A list of VMs, each with the options of this module; what is given beside it is each item's default.
type: list
elements: dict
"""


_OPTIONS = {**yaml.safe_load(_RUN), **documentation(VM)}


class ModuleDocFragment:
    """The options of a VM, alone and in a list."""

    # With a type, since ansible-test's yamllint takes what is assigned here without one for a string.
    DOCUMENTATION: str = yaml.safe_dump(
        {"options": {**_OPTIONS, "vms": {**yaml.safe_load(_LIST), "suboptions": _OPTIONS}}}, sort_keys=False
    )
