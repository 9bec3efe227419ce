# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When a VM is ready: what is waited for, read from the options, and the waiting itself."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

from .errors import MicrovmError
from .vm_schema import Version, spelled

DEFAULT_TIMEOUT = 120
Kind = Literal["tap", "api", "serial", "tcp", "http", "notify", "cloud_init"]
# Cloud-init's final_message, on the console unless its output is led elsewhere (cc_final_message).
CLOUD_INIT_FINISHED = r"(?i)cloud-init\b.*\bfinished\b"
# The first releases that hand what a guest has written to the one who attaches then (vmm/src/serial_manager.rs). Before, a
# socket drops it, and a pty shows it once a key was pressed.
_TOLD_SINCE: Mapping[str, Version] = {"pty": (50, 0), "socket": (53, 0)}
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing to wait for. ``port``, ``path``, ``status`` and ``pattern`` are for the kinds that have them."""

    kind: Kind
    port: int = 0
    path: str = ""
    status: int = 0
    pattern: str = ""

    @property
    def once(self) -> bool:
        """Whether it is something that happens once in a boot, and not something that can be asked for again."""
        return self.kind in ("serial", "notify", "cloud_init")

    def __str__(self) -> str:
        match self.kind:
            case "serial":
                return f"serial {self.pattern!r}"
            case "tcp":
                return f"tcp port {self.port}"
            case "http":
                body = f" and {self.pattern!r}" if self.pattern else ""
                return f"http port {self.port}, {self.path} with {self.status}{body}"
            case kind:
                return kind.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Readiness:
    """The conditions, all of which must hold within ``timeout`` seconds, and the guest's address for those that need one."""

    conditions: tuple[Condition, ...]
    timeout: float
    address: str | None


def parse(options: Mapping[str, Any]) -> Readiness | None:
    """Read a VM's ``wait_for``; None where nothing is waited for.

    Raises MicrovmError, naming the option, for a pattern that is no regular expression, for one on a serial port that
    leads nowhere, for a port without an address, and for a report over vsock without a vsock.
    """
    asked = options.get("wait_for") or {}
    conditions = [Condition(kind) for kind in _SWITCHES if asked.get(kind)]
    if asked.get("serial") is not None:
        conditions.append(Condition("serial", pattern=_pattern(asked["serial"], "wait_for.serial")))
    conditions += [Condition("tcp", port=_port(port, "wait_for.tcp")) for port in asked.get("tcp") or ()]
    for index, http in enumerate(asked.get("http") or ()):
        option = f"wait_for.http[{index}]"
        path = http.get("path") or "/"
        if not path.startswith("/"):
            raise MicrovmError(f"{path!r} is not a path; begin it with '/'", option=f"{option}.path")
        conditions.append(
            Condition(
                "http",
                port=_port(80 if http.get("port") is None else http["port"], f"{option}.port"),
                path=path,
                status=http.get("status") or 200,
                pattern=_pattern(http.get("body") or "", f"{option}.body"),
            )
        )
    if not conditions:
        return None
    address = asked.get("address") or (options.get("labels") or {}).get("address")
    kinds = {condition.kind for condition in conditions}
    mode = (options.get("serial") or {}).get("mode") or "file"
    if kinds & {"serial", "cloud_init"} and mode in ("null", "off"):
        raise MicrovmError(
            f"the serial port is '{mode}', so nothing can be read there; give it another mode", option="wait_for"
        )
    if kinds & {"tcp", "http"} and address is None:
        raise MicrovmError(
            "is missing; give the guest's address, or the VM a label of this name", option="wait_for.address"
        )
    if "notify" in kinds and not options.get("vsock"):
        raise MicrovmError("the guest reports over vsock, and the VM has none; give it one", option="wait_for.notify")
    if "tap" in kinds and not options.get("nets"):
        raise MicrovmError("the VM has no NIC, and so no TAP", option="wait_for.tap")
    timeout = asked.get("timeout")
    return Readiness(tuple(conditions), DEFAULT_TIMEOUT if timeout is None else timeout, address)


def check_release(options: Mapping[str, Any], release: Version) -> None:
    """Raise MicrovmError where a VMM of this release loses what is waited for before anybody can read it."""
    asked = options.get("wait_for") or {}
    reads = next((f"wait_for.{option}" for option in ("serial", "cloud_init") if asked.get(option)), None)
    mode = str((options.get("serial") or {}).get("mode"))
    since = _TOLD_SINCE.get(mode, release)
    if reads and release < since:
        raise MicrovmError(
            f"with serial.mode: {mode} it needs Cloud Hypervisor {spelled(since)} or later, and this is {spelled(release)}, "
            "which does not tell what the guest has written before somebody attaches; use the mode file",
            option=reads,
        )


_SWITCHES: tuple[Kind, ...] = ("api", "tap", "notify", "cloud_init")


def _pattern(text: str, option: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise MicrovmError(f"{text!r} is not a regular expression: {error}", option=option) from error
    return text


def _port(port: int, option: str) -> int:
    if not 1 <= port <= 65535:
        raise MicrovmError(f"{port} is not a TCP port; use 1 to 65535", option=option)
    return port


class NotReady(Exception):
    """The wait is over; ``unmet`` has what is not there and why, in the order of the conditions."""

    def __init__(self, unmet: Mapping[Condition, str]) -> None:
        super().__init__("; ".join(f"{condition}: {reason}" for condition, reason in unmet.items()))
        self.unmet = unmet


# Asks for one condition: None where it holds, else what was found instead.
Probe = Callable[[Condition], Union[str, None]]


def wait(conditions: Sequence[Condition], probe: Probe, *, timeout: float) -> dict[Condition, float]:
    """Ask for the conditions until each has held once; return after how many seconds each did.

    Raises NotReady after ``timeout`` seconds; each condition has been asked for once by then, whatever the timeout. What
    ``probe`` raises ends the wait.
    """
    begun = time.monotonic()
    met: dict[Condition, float] = {}
    while True:
        unmet: dict[Condition, str] = {}
        for condition in conditions:
            if condition in met:
                continue
            reason = probe(condition)
            if reason is None:
                met[condition] = round(time.monotonic() - begun, 1)
            else:
                unmet[condition] = reason
        if not unmet:
            return met
        if time.monotonic() - begun >= timeout:
            raise NotReady(unmet)
        time.sleep(_POLL_SECONDS)
