# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: cidata
short_description: Render the cloud-init documents of many VMs
version_added: 0.2.0
description:
  - Renders for each VM that has a lease the templates C(user-data.j2), C(meta-data.j2) and C(network-config.j2), or those
    that its keys C(user_data_template), C(meta_data_template) and C(network_config_template) name.
  - A template is found and rendered as P(ansible.builtin.template#lookup) does, with C(vm) and C(lease) beside the
    variables of the host. The role P(microvm.cloud_hypervisor.vm#role) does so; you hardly need to yourself.
author:
  - The microvm.cloud_hypervisor developers (@microvm)
options:
  _terms:
    description: The VMs, as O(microvm.cloud_hypervisor.vm#role:main:vm_instances) has them.
    type: list
    elements: dict
    required: true
  leases:
    description: The leases by the VMs' names, as RV(microvm.cloud_hypervisor.ch_lease#module:vms) has them.
    type: dict
    required: true
seealso:
  - module: microvm.cloud_hypervisor.ch_disks
"""

EXAMPLES = r"""
- name: Build the disks
  microvm.cloud_hypervisor.ch_disks:
    name: web
    image: /var/lib/microvm/images/base.raw
    cidata: "{{ documents.web }}"
  vars:
    documents: "{{ lookup('microvm.cloud_hypervisor.cidata', {'name': 'web'}, leases=leased.vms) }}"
"""

RETURN = r"""
_raw:
  description: The documents by the VM's name, each with the keys C(user_data), C(meta_data) and C(network_config).
  type: list
  elements: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible.plugins.loader import lookup_loader
from ansible.plugins.lookup import LookupBase

DOCUMENTS = {"user_data": "user-data.j2", "meta_data": "meta-data.j2", "network_config": "network-config.j2"}


class _Variables(dict[str, Any]):
    """The variables of a host. The lookup of templates copies them for each template in depth, with the results of all
    VMs in them, so that twice the VMs would take four times as long; it only adds to its copy."""

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return dict(self)


class LookupModule(LookupBase):
    """Renders documents."""

    def run(
        self, terms: list[Mapping[str, Any]], variables: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, dict[str, Any]]]:
        """Return the documents of all VMs, in one dictionary."""
        self.set_options(var_options=variables, direct=kwargs)
        leases = self.get_option("leases")
        template = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        shared = _Variables(variables or {})

        def render(vm: Mapping[str, Any], document: str, default: str) -> Any:
            name = vm.get(f"{document}_template") or default
            given = {"vm": vm, "lease": leases[vm["name"]]}
            return template.run([name], variables=shared, template_vars=given)[0]

        vms = [vm for vm in self._flatten(terms) if leases.get(vm["name"], {}).get("address") is not None]
        return [{vm["name"]: {key: render(vm, key, default) for key, default in DOCUMENTS.items()} for vm in vms}]
