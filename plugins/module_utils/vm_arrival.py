# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""That a VM which has come from another host is the one that was agreed on.

What its VMM is told there, this host's one opens: the configuration comes with the memory, and the images name their backing
files themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from . import vm_access, vm_schema
from .errors import MicrovmError
from .vm_moving import Move
from .vm_properties import VM


def check_backing(config: Mapping[str, Any], move: Move) -> None:
    """Raise MicrovmError for an image that came and is based on a file that was not agreed on, before a VMM opens it."""
    for use in vm_access.backing_files(config):
        if str(use.path) not in move.backing:
            raise MicrovmError(
                f"the image that came from '{move.host}' is based on '{use.path}', of which nothing was said; look at what "
                "that host does",
                option=use.option,
            )


def check(config: Mapping[str, Any], agreed: Mapping[str, Any]) -> None:
    """Raise MicrovmError where a VMM's configuration names a file, a socket or a TAP that the agreed one does not."""
    known = {value for _option, value in _named(agreed)}
    for option, value in _named(config):
        # The VMM says which pty it has been given.
        if value not in known and not value.startswith("/dev/pts/"):
            raise MicrovmError(
                f"the guest came with '{value}', of which nothing was said; look at what the host does that it came from",
                option=option,
            )


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    # The rules are for the VMM, which opens nothing for being allowed to.
    properties = [prop for prop in VM if prop.key != "landlock_rules"]
    yield from vm_schema.values(properties, config, "path")
    yield from (("nets.tap", net["tap"]) for net in config.get("net") or () if net.get("tap"))
