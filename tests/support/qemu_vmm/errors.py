# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The errors that become answers."""

from __future__ import annotations


class Refused(Exception):
    """What the VMM refuses to do: the causes from the outermost on, without the two that the API puts before them."""

    def __init__(self, *causes: str) -> None:
        super().__init__(": ".join(causes))
        self.causes = causes


class BadJson(Exception):
    """A request whose body is not what the call takes; answered with 400."""


def not_emulated(what: str) -> Refused:
    """Say that the real VMM can do it but this one cannot."""
    return Refused(f"{what}: not emulated by the qemu_vmm stand-in")


def os_error(error: OSError) -> str:
    """Spell an error of the system as Rust does."""
    return f"{error.strerror} (os error {error.errno})"
