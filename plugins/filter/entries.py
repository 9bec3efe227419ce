# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils import compose

Steps = Mapping[str, Mapping[str, compose.Facts]]


def entries(instances: Iterable[compose.Entry], defaults: compose.Entry | None = None) -> list[dict[str, Any]]:
    """Check the entries of an inventory and fill in their defaults."""
    try:
        return compose.entries(instances, defaults or {})
    except compose.ComposeError as error:
        raise AnsibleFilterError(str(error)) from error


def reached(wanted: Iterable[compose.Entry], steps: Steps) -> list[compose.Entry]:
    """Keep the entries that came through the steps so far."""
    return compose.reached(wanted, steps.values())


def options_for(
    wanted: Iterable[compose.Entry],
    module: str,
    steps: Steps | None = None,
    images: Iterable[compose.Entry] = (),
    cidata: Mapping[str, compose.Facts] | None = None,
) -> list[Any]:
    """Return the items of the module's list option, for the entries that came through the steps so far."""
    steps = steps or {}
    image_step = steps.get("images", {})
    # A VM has come through the first step if its image has.
    by_vm = [step for name, step in steps.items() if name != "images"]
    left = compose.reached(wanted, by_vm)
    if image_step:
        left = [entry for entry in left if not image_step.get(entry["image"], {"failed": True}).get("failed")]
    try:
        if module == "ch_image":
            return compose.images(left, images)
        builders: dict[str, Callable[[compose.Entry], dict[str, Any]]] = {
            "ch_lease": compose.lease,
            "ch_disks": lambda entry: compose.disks(entry, image_step[entry["image"]], (cidata or {})[entry["name"]]),
            "ch_nft": lambda entry: compose.nft(entry, steps["leases"][entry["name"]]),
            "ch_vm": lambda entry: compose.vm(
                entry,
                image_step[entry["image"]],
                steps["leases"][entry["name"]],
                steps["disks"][entry["name"]],
            ),
        }
        return [builders[module](entry) for entry in left]
    except compose.ComposeError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filters of the role vm."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"entries": entries, "options_for": options_for}
