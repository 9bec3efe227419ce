# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils import cloud_init, compose, entry_options, fleet

Steps = Mapping[str, Mapping[str, compose.Facts]]


def entries(
    instances: Iterable[compose.Entry], defaults: compose.Entry | None = None, check: bool = False
) -> list[dict[str, Any]]:
    """Check the entries of an inventory and fill in their defaults."""
    try:
        filled = compose.entries(instances, defaults or {})
        if check:
            entry_options.check(filled)
        return filled
    except compose.ComposeError as error:
        raise AnsibleFilterError(str(error)) from error


def options_for(
    wanted: Iterable[compose.Entry],
    module: str,
    steps: Steps | None = None,
    images: Iterable[compose.Entry] = (),
    cidata: Mapping[str, compose.Facts] | None = None,
) -> list[Any]:
    """Return the items of a module's list option, for the entries that came through the steps so far."""
    steps = steps or {}
    left = compose.reached(wanted, steps.values())
    builders: dict[str, Callable[[compose.Entry], dict[str, Any]]] = {
        "ch_lease": compose.lease,
        "ch_disks": lambda vm: compose.disks(vm, steps["images"][vm["image"]], (cidata or {})[vm["name"]]),
        "ch_nft": lambda vm: compose.nft(vm, steps["leases"][vm["name"]]),
        "ch_vm": lambda vm: compose.vm(vm, steps["leases"][vm["name"]], steps["disks"][vm["name"]]),
    }
    try:
        return compose.images(left, images) if module == "ch_image" else [builders[module](vm) for vm in left]
    except compose.ComposeError as error:
        raise AnsibleFilterError(str(error)) from error


def reached(wanted: Iterable[compose.Entry], steps: Steps) -> list[compose.Entry]:
    """Keep the entries that came through the steps so far."""
    return compose.reached(wanted, steps.values())


def stops(
    names: Iterable[str],
    known: Iterable[compose.Entry],
    defaults: compose.Entry | None = None,
    grace: int | str | None = None,
) -> list[dict[str, Any]]:
    """Return the items of ch_vm's vms, for VMs that are stopped."""
    return compose.stops(names, known, defaults or {}, grace)


def placed_on(
    wanted: Iterable[compose.Entry], host: str, placements: Mapping[str, str], strict: bool = True
) -> list[compose.Entry]:
    """Keep the entries of a fleet whose place is the host."""
    try:
        return fleet.placed_on(wanted, host, placements, strict=strict)
    except compose.ComposeError as error:
        raise AnsibleFilterError(str(error)) from error


def demands(
    wanted: Iterable[compose.Entry], images: Iterable[compose.Entry], strict: bool = True
) -> list[dict[str, Any]]:
    """Return the items of ch_placement's vms."""
    try:
        return fleet.demands(wanted, images, strict=strict)
    except MicrovmError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filters of the role vm."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "demands": demands,
            "entries": entries,
            "meta_data": cloud_init.meta_data,
            "network_config": cloud_init.network_config,
            "options_for": options_for,
            "placed_on": placed_on,
            "reached": reached,
            "stops": stops,
            "user_data": cloud_init.user_data,
        }
