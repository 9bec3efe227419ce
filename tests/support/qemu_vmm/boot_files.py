# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files that a guest boots from, and what is refused of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .errors import Refused, not_emulated, os_error

Json = dict[str, Any]
# A payload smaller than that is no Linux: it knows Cloud Hypervisor's shutdown port, and neither ACPI nor PCI.
SMALLEST_LINUX = 1 << 20


def is_tiny(payload: Json) -> bool:
    """Whether the kernel is an ELF file too small to be Linux."""
    kernel = Path(payload["kernel"])
    with kernel.open("rb") as file:
        return file.read(4) == b"\x7fELF" and kernel.stat().st_size < SMALLEST_LINUX


def _bootable(kernel: str) -> bool:
    """Whether a file is an ELF or has the magic of a bzImage (Linux's Documentation/arch/x86/boot.rst)."""
    with open(kernel, "rb") as file:
        head = file.read(0x206)
    return head[:4] == b"\x7fELF" or head[0x202:] == b"HdrS"


def check(config: Json) -> None:
    """Refuse a VM whose files cannot be read, or are no kernel."""
    payload = config["payload"]
    if "firmware" in payload:
        raise not_emulated("a firmware as payload")
    for name, cause in (("kernel", "Cannot open kernel file"), ("initramfs", "Cannot open initramfs file")):
        if name in payload:
            try:
                os.close(os.open(payload[name], os.O_RDONLY))
            except OSError as error:
                raise Refused(cause, os_error(error)) from error
    if not _bootable(payload["kernel"]):
        loader = "Kernel Loader: Invalid bzImage"
        cause = f"Kernel Loader: failed to load bzImage kernel image: {loader}"
        raise Refused("Cannot load the kernel into memory", cause, loader)
    try:
        os.close(os.open(config["rng"]["src"], os.O_RDONLY))
    except OSError as error:
        raise Refused("Error from device manager", "Cannot create virtio-rng device", os_error(error)) from error
