# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From what the playbook status found to the hosts of an inventory: names, variables, groups. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .ssh_proxy import HostConnection, control_path, guest_arguments

Naming = Literal["short", "qualified"]
_ADDRESS = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:-]*")


@dataclass(frozen=True, slots=True)
class Guest:
    """One VM: its name in the inventory, its own name, its host, and what ch_vm_info tells of it."""

    inventory_name: str
    name: str
    host: str
    facts: Mapping[str, Any]

    @property
    def labels(self) -> Mapping[str, Any]:
        """What the role vm noted of the VM: address, address6, mac, image, tags."""
        return self.facts.get("labels") or {}

    @property
    def state(self) -> str:
        """The VM's state; ``failed`` where its VMM did not answer."""
        return "failed" if self.facts.get("failed") else str(self.facts["state"])


def guests(status: Mapping[str, Any], *, naming: Naming, taken: Collection[str] = ()) -> list[Guest]:
    """Return the VMs of all hosts that answered, by host and name.

    ``status`` is the document that the playbook status writes: ``{"hosts": {HOST: {"vms": {NAME: FACTS}}}}``. A name is
    HOST-NAME where ``naming`` says so, where two hosts have a VM of that name, and where it is ``taken``: two VMs must
    not become one host of the inventory, nor one take the place of the localhost that Ansible has without an inventory.
    """
    found = [
        (host, name, facts)
        for host, told in sorted(status["hosts"].items())
        for name, facts in sorted((told.get("vms") or {}).items())
    ]
    counts = Counter(name for _host, name, _facts in found)
    return [
        Guest(
            f"{host}-{name}" if naming == "qualified" or counts[name] > 1 or name in {*taken, "localhost"} else name,
            name,
            host,
            facts,
        )
        for host, name, facts in found
    ]


def unanswered(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each host that did not answer, and why."""
    for host, told in sorted(status["hosts"].items()):
        if told.get("vms") is None:
            yield host, str(told.get("msg") or "it gave no reason").strip()


def variables(guest: Guest, connection: HostConnection, *, jump: bool) -> dict[str, Any]:
    """Return the host variables of a VM. With ``jump``, ssh goes through the VM's host, unless that is this machine."""
    values: dict[str, Any] = {
        "microvm_name": guest.name,
        "microvm_host": guest.host,
        "microvm_state": guest.state,
        "microvm_address": guest.labels.get("address"),
        "microvm_address6": guest.labels.get("address6"),
        "microvm_mac": guest.labels.get("mac"),
        "microvm_image": guest.labels.get("image"),
        "microvm_tags": list(guest.labels.get("tags") or ()),
        "microvm_labels": dict(guest.labels),
    }
    address = guest.labels.get("address") or guest.labels.get("address6")
    # The host's word, which becomes an argument of ssh here: with a "-" in front it would be an option.
    if address is not None and _ADDRESS.fullmatch(str(address)):
        values["ansible_host"] = address
        values["ansible_control_path"] = control_path(guest.host, guest.name)
        values["ansible_ssh_common_args"] = guest_arguments(connection, guest.host, guest.name, jump=jump)
    return values


def groups(guest: Guest) -> list[str]:
    """Return the groups that a VM is in without being asked for: by state, host, image and tag; not sanitized yet."""
    named = [f"state_{guest.state}", f"host_{guest.host}"]
    if guest.labels.get("image"):
        named.append(f"image_{guest.labels['image']}")
    return [*named, *(f"tag_{tag}" for tag in guest.labels.get("tags") or ())]
