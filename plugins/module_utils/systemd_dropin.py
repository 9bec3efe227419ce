# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a VM's unit has beside the template that all share: the text of its drop-in. Pure.

Facts from systemd.syntax(7), systemd.unit(5), systemd.service(5) and systemd.exec(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .vm_paths import Paths

COMMAND = "/usr/local/bin/microvm"
_SETSID = "/usr/bin/setsid"
# What a stop may take beside the guest's time: see vm_stop, and the start of a Python.
_STOP_SECONDS = 60
_START_SECONDS = 60
# What a VMM's end says of it does not count while its VM is moved to another one; see command_unit.LOST. 101 is a Rust panic.
_ANY_END = "1 101 SIGABRT SIGBUS SIGFPE SIGILL SIGKILL SIGQUIT SIGSEGV SIGSYS SIGTRAP"
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "%": "%%"}

Section = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Restart:
    """When a VMM that ended is started again, and how often: so many starts (``burst``) in so many ``seconds``."""

    policy: str = "on-failure"
    burst: int = 5
    seconds: int = 300


@dataclass(frozen=True, slots=True)
class Unit:
    """What a VM's drop-in says.

    ``argv`` is the VMM's argument vector, ``files`` and ``devices`` are what it writes to outside its directories, times are
    in seconds, ``limits`` are settings of systemd.resource-control(5).
    """

    paths: Paths
    argv: Sequence[str]
    user: str
    groups: Sequence[str] = ()
    files: Sequence[str] = ()
    devices: Sequence[str] = ()
    grace: float = 30
    boot_timeout: float = 30
    restart: Restart = Restart()
    limits: Mapping[str, str] = field(default_factory=dict)


def stop_seconds(grace: float) -> float:
    """Return how long a stop may take that leaves the guest ``grace`` seconds, before systemd sends TERM, then KILL."""
    return grace + _STOP_SECONDS


def stop_seconds_of(text: str) -> float:
    """Return how long a stop may take by a drop-in."""
    found = [line.partition("=")[2] for line in text.splitlines() if line.startswith("TimeoutStopSec=")]
    return float(found[-1]) if found else 0


def quote(word: str) -> str:
    """Return a word as a setting takes it that splits its value into words: in quotes, what means something escaped."""
    return '"' + "".join(_ESCAPES.get(character, character) for character in word) + '"'


def command_line(argv: Iterable[str], *, prefix: str = "") -> str:
    """Return an argument vector as ExecStart= takes it; there a ``$`` is doubled, too (systemd.service(5), Command lines)."""
    return prefix + " ".join(quote(word).replace("$", "$$") for word in argv)


def _own(paths: Paths, subcommand: str, *options: str) -> str:
    """Return a command of ours, which runs as root, whatever the template takes from the VMM."""
    return command_line([COMMAND, *paths.arguments(), subcommand, paths.name, *options], prefix="+")


def render(unit: Unit) -> str:
    """Return the drop-in."""
    paths = unit.paths
    service = [
        ("ExecStartPre", _own(paths, "prepare")),
        ("ExecStart", command_line(unit.argv)),
        ("ExecStartPost", _own(paths, "boot")),
        ("ExecStop", _own(paths, "stop", "--grace", f"{unit.grace:g}")),
        ("ExecStopPost", _own(paths, "cleanup")),
        ("User", unit.user),
        ("Group", unit.user),
        *(("SupplementaryGroups", group) for group in unit.groups),
        *(("ReadWritePaths", quote(path)) for path in (str(paths.state), f"-{paths.run}", *unit.files)),
        *(("DeviceAllow", f"{quote(device)} rw") for device in unit.devices),
        ("Restart", unit.restart.policy),
        ("TimeoutStartSec", f"{unit.boot_timeout + _START_SECONDS:g}"),
        ("TimeoutStopSec", f"{stop_seconds(unit.grace):g}"),
        *unit.limits.items(),
    ]
    limit = [
        ("StartLimitIntervalSec", str(unit.restart.seconds)),
        ("StartLimitBurst", str(unit.restart.burst)),
    ]
    title = [("Description", f"microVM {paths.name}")]
    return "# Written by microvm.cloud_hypervisor.ch_vm.\n" + "\n".join(
        _section(name, settings) for name, settings in (("Unit", [*title, *limit]), ("Service", service))
    )


def render_handover(paths: Paths, argv: Sequence[str], *, seconds: float, limits: Mapping[str, str]) -> str:
    """Return the drop-in that has a unit's reload start a second VMM, ``argv``, and move the VM to it in so many seconds."""
    service = [
        ("ExecReload", command_line([_SETSID, "--fork", *argv])),
        ("ExecReload", _own(paths, "handover")),
        # What it prints is under the same name in the journal as what the first one does.
        ("SyslogIdentifier", "cloud-hypervisor"),
        ("NotifyAccess", "exec"),
        ("TimeoutStartSec", f"{seconds:g}"),  # of a reload, too
        ("OOMPolicy", "continue"),
        ("SuccessExitStatus", _ANY_END),
        *limits.items(),
    ]
    return "# Written by microvm.cloud_hypervisor.ch_upgrade, for the time of a move.\n" + _section("Service", service)


def _section(name: str, settings: Section) -> str:
    return f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in settings)
