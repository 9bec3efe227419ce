# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A difference between a VM that runs and what is asked for, and what the VMM is asked for to make it go away. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .vm_schema import Property

How = Literal["live", "restart", "refused"]
What = Literal["remove", "vcpus", "memory", "zone", "add", "disk", "balloon"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the VMM's API. ``name`` is the device's or the zone's, ``value`` a number of vCPUs, of bytes, or a config."""

    what: What
    kind: str = ""
    name: str = ""
    value: Any = None

    @property
    def words(self) -> str:
        """Say what it does, as an action."""
        match self.what:
            case "remove":
                return f"unplugged {self.name}"
            case "add":
                return f"plugged in {self.name}"
            case "vcpus":
                return f"set cpus.boot to {self.value}"
            case "zone" | "disk":
                return f"set the size of {self.name} to {self.value}"
            case _:
                return f"set {self.what}.size to {self.value}"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference, by the option that asks for it.

    ``how`` is how it goes away: ``live`` by ``calls``, or by a ``restart``; what is ``refused`` is not done to a VM that runs
    at all. ``reason`` says why it is not done live.
    """

    option: str
    before: Any
    after: Any
    how: How
    reason: str = ""
    calls: tuple[Call, ...] = ()

    def restart(self, reason: str) -> Change:
        """Return the change as one that takes a restart."""
        return replace(self, how="restart", reason=reason, calls=())

    def refuse(self, reason: str) -> Change:
        """Return the change as one that is refused."""
        return replace(self, how="refused", reason=reason, calls=())

    @property
    def words(self) -> str:
        """Say what differs, and why it still does."""
        if self.before == self.after:
            return f"{self.option} {self.reason}"
        what = f"{self.option} is {_short(self.before)}, not {_short(self.after)}"
        return f"{what}: {self.reason}" if self.reason else what


def _short(value: Any) -> str:
    return "missing" if value is None else repr(value) if not isinstance(value, (Mapping, list)) else "another"


def settled(properties: Sequence[Property], have: Mapping[str, Any], want: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a VM has without what the VMM has filled in by itself and nobody asks for."""
    own = {prop.key for prop in properties if prop.own}
    return {key: value for key, value in have.items() if key in want or key not in own}


def leaves(
    properties: Sequence[Property], have: Mapping[str, Any], want: Mapping[str, Any], *, at: str
) -> Iterator[Change]:
    """Return each property that differs, as a change that takes a restart."""
    for prop in properties:
        key = prop.key
        if key is None or have.get(key) == want.get(key):
            continue
        yield Change(f"{at}.{prop.option or key}", have.get(key, prop.default), want.get(key, prop.default), "restart")
