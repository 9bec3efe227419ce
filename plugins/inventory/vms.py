# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: vms
short_description: The VMs of hypervisor hosts, as hosts of the inventory
version_added: 0.2.0
description:
  - Asks all hypervisor hosts at the same time for their VMs, and adds each VM as a host that is reached over ssh through
    the host that it runs on.
  - The source file must be named C(vms.yml) or C(vms.yaml), or end in C(.vms.yml) or C(.vms.yaml).
  - The hosts are asked with the playbook C(microvm.cloud_hypervisor.status), in a process of its own, so that whatever
    Ansible can connect to can be asked. A hypervisor host that needs a password is asked where Ansible has it as a
    variable; for the way through it to a guest, it must take a key.
  - Each VM has the variables C(microvm_name), C(microvm_host), C(microvm_state), C(microvm_address),
    C(microvm_address6), C(microvm_mac), C(microvm_image), C(microvm_tags) and C(microvm_labels).
  - It has C(ansible_host), and C(ansible_ssh_common_args) with a C(ProxyCommand) that goes through its host with the
    host's own user, port, key and arguments. Arguments of your own for the guests go into C(ansible_ssh_extra_args).
  - Guests of two hosts can have the same address. C(ansible_control_path) and ssh's C(HostKeyAlias) keep them apart;
    the latter is C(HOST/NAME) in C(known_hosts).
author:
  - The microvm.cloud_hypervisor developers (@microvm)
extends_documentation_fragment:
  - ansible.builtin.constructed
  - ansible.builtin.inventory_cache
options:
  plugin:
    description: The name of this plugin, which tells that the file is for it.
    type: str
    required: true
    choices: [microvm.cloud_hypervisor.vms]
  inventory:
    description:
      - The inventory sources that hold the hypervisor hosts, relative to the directory of the source file.
      - The default is that directory itself. The source file may lie in it.
    type: list
    elements: str
    default: ["."]
  hosts:
    description: The pattern of the hosts to ask.
    type: str
    default: hypervisors
  status_file:
    description:
      - A file that the playbook C(microvm.cloud_hypervisor.status) wrote, relative to the directory of the source file.
        It is read instead of asking the hosts.
    type: str
  group:
    description: The group that all VMs are in.
    type: str
    default: vms
  default_groups:
    description:
      - Whether each VM is also in the groups C(state_STATE), C(host_HOST), C(image_IMAGE) and C(tag_TAG), one for each of
        its tags.
    type: bool
    default: true
  naming:
    description:
      - With V(short) a VM is named as on its host, and C(HOST-NAME) only where two hosts have a VM of that name, or the
        inventory has a host of that name.
      - With V(qualified) all are named C(HOST-NAME), so that no name depends on what else there is.
    type: str
    choices: [short, qualified]
    default: short
  jump:
    description: Whether ssh goes through the VM's host. It does not where the host's connection is not ssh.
    type: bool
    default: true
  unanswered:
    description: What a host that does not answer is. The VMs of the others are there with V(warning).
    type: str
    choices: [warning, error]
    default: warning
  forks:
    description: How many hosts are asked at the same time.
    type: int
    default: 25
  timeout:
    description: How many seconds asking all of them may take.
    type: int
    default: 120
seealso:
  - module: microvm.cloud_hypervisor.ch_vm_info
"""

EXAMPLES = r"""
# inventory/guests.vms.yml, beside inventory/hosts.yml, which has the group hypervisors
plugin: microvm.cloud_hypervisor.vms

---
# Those that run, grouped by the first word of their image, with a user to log in as; asked for every ten minutes
plugin: microvm.cloud_hypervisor.vms
inventory: [production.yml]
hosts: hypervisors:!retired
strict: true
compose:
  ansible_user: "'ubuntu' if microvm_image.startswith('ubuntu') else 'debian'"
groups:
  up: microvm_state == 'running'
keyed_groups:
  - key: microvm_image.split('-')[0]
    prefix: os
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: ~/.cache/microvm
cache_timeout: 600
"""

from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils import status_run, vm_inventory
from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils.ssh_proxy import HostConnection


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """Adds the VMs of hypervisor hosts."""

    NAME = "microvm.cloud_hypervisor.vms"

    def verify_file(self, path: str) -> bool:
        """Return whether the file is named as one for this plugin."""
        return super().verify_file(path) and Path(path).name.endswith(("vms.yml", "vms.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Add the VMs to the inventory."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        if status_run.being_asked():
            return
        try:
            status = self._cached_status(path, cache)
        except MicrovmError as error:
            raise AnsibleParserError(f"{path}: {error}") from error
        for host, reason in vm_inventory.unanswered(status):
            message = f"{path}: host '{host}' did not answer: {reason}"
            if self.get_option("unanswered") == "error":
                raise AnsibleParserError(message)
            self.display.warning(message)
        self._add(status)

    def _cached_status(self, path: str, cache: bool) -> Any:
        # "cache" is false where a run wants it anew, as for meta: refresh_inventory.
        keep, key = self.get_option("cache"), self.get_cache_key(path)
        if keep and cache and key in self._cache:
            return self._cache[key]
        status = self._status(Path(path).parent)
        if keep:
            self._cache[key] = status
        return status

    def _status(self, directory: Path) -> Any:
        if self.get_option("status_file"):
            return status_run.read(directory / Path(self.get_option("status_file")).expanduser())
        return status_run.ask(
            [str(directory / Path(source).expanduser()) for source in self.get_option("inventory")],
            self.get_option("hosts"),
            forks=self.get_option("forks"),
            timeout=self.get_option("timeout"),
            arguments=status_run.vault_arguments(context.CLIARGS),
        )

    def _add(self, status: Any) -> None:
        group = self.inventory.add_group(self._sanitize_group_name(self.get_option("group")))
        for guest in vm_inventory.guests(status, naming=self.get_option("naming"), taken=set(self.inventory.hosts)):
            name = self.inventory.add_host(guest.inventory_name, group=group)
            connection = HostConnection.of(guest.host, status["hosts"][guest.host].get("connection") or {})
            variables = vm_inventory.variables(guest, connection, jump=self.get_option("jump"))
            for key, value in variables.items():
                self.inventory.set_variable(name, key, value)
            for default in vm_inventory.groups(guest) if self.get_option("default_groups") else ():
                self.inventory.add_child(self.inventory.add_group(self._sanitize_group_name(default)), name)
            strict = self.get_option("strict")
            self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
            self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
            self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)
