# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The errors that users see."""

from __future__ import annotations


class MicrovmError(Exception):
    """Something the user can act on.

    The message says what was found and what would be right; ``option`` and ``vm`` say where.
    """

    def __init__(self, message: str, *, option: str | None = None, vm: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.option = option
        self.vm = vm

    def __str__(self) -> str:
        where = [f"VM '{self.vm}'"] if self.vm else []
        if self.option:
            where.append(f"option '{self.option}'")
        return f"{', '.join(where)}: {self.message}" if where else self.message

    def for_vm(self, vm: str) -> MicrovmError:
        """Name the VM on an error raised by code that does not know which VM it works for."""
        if self.vm is None:
            self.vm = vm
        return self


class CommandFailed(MicrovmError):
    """A host command ended with a non-zero exit status, was not found, or took too long."""
