# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options of QEMU's command line."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def fds_name(fds: list[int]) -> str:
    """Return the option for so many descriptors."""
    return "fd" if len(fds) == 1 else "fds"


def on(value: bool) -> str:
    """Spell a switch."""
    return "on" if value else "off"


def escaped(value: str) -> str:
    """Spell a value in which commas may be."""
    return value.replace(",", ",,")


def joined(properties: Json, first: str = "driver") -> str:
    """Spell properties as QEMU's command line does."""
    rest = (
        f"{name}={on(value) if isinstance(value, bool) else escaped(str(value))}"
        for name, value in properties.items()
        if name != first
    )
    return ",".join([str(properties[first]), *rest])


def smbios(platform: Json) -> list[str]:
    """Return what tells the guest of its machine, from a PlatformConfig."""
    fields = {
        "system_manufacturer": "manufacturer",
        "system_product_name": "product",
        "system_version": "version",
        "system_serial_number": "serial",
        "system_uuid": "uuid",
        "system_sku_number": "sku",
        "system_family": "family",
    }
    known = [f"{name}={escaped(platform[key])}" for key, name in fields.items() if key in platform]
    argv = ["-smbios", ",".join(["type=1", *known])] if known else []
    if "chassis_asset_tag" in platform:
        argv += ["-smbios", f"type=3,asset={escaped(platform['chassis_asset_tag'])}"]
    if platform.get("oem_strings"):
        values = [f"value={escaped(value)}" for value in platform["oem_strings"]]
        argv += ["-smbios", ",".join(["type=11", *values])]
    return argv
