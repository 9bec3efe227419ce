# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bringing a VM up and waiting until it is ready.

The wait comes after all else, without the VM's lock. What happens once in a boot, such as a line on the serial port, is kept in
``ready.json`` in the run directory and counts until the guest boots again; a port is asked for in each run. So a run that
changes nothing asks once for what can be asked for, and has AGAIN_SECONDS for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import events, guest_probe, readiness, ready_record, tap, vm_lifecycle, vm_record
from .bulk import Outcome
from .errors import MicrovmError
from .guest_output import Output, output, own_file
from .names import check_vm_name
from .readiness import Condition, NotReady, Readiness
from .runner import Runner
from .tail import last_lines, text_of
from .vm_state import Current, Vm, current
from .vsock_notify import Listener

AGAIN_SECONDS = 5.0
_TOLD_LINES = 10
# What is kept of a serial port's output, to find a pattern in.
_KEPT = 1 << 20


def ensure(
    item: Mapping[str, Any], *, state_dir: Path, run_dir: Path, runner: Runner, check_mode: bool = False
) -> Outcome:
    """Bring one VM to the state that its options ask for, as vm_lifecycle.ensure does, and wait until it is ready.

    Raises MicrovmError where it does not get ready; it goes on running then, and the next run waits for it again.
    """
    vm = Vm.of(
        check_vm_name(item["name"]),
        state_dir=state_dir,
        run_dir=run_dir,
        runner=runner,
        supervisor=item.get("supervisor"),
        unit=item.get("unit"),
    )
    asked = _asked(item, vm)
    with ExitStack() as stack:
        listener = None
        if asked is not None and any(condition.kind == "notify" for condition in asked.conditions):
            listener = stack.enter_context(Listener(vm.paths.vsock_socket))
        outcome = vm_lifecycle.ensure(
            item,
            state_dir=state_dir,
            run_dir=run_dir,
            runner=runner,
            check_mode=check_mode,
            before_boot=listener.open if listener else None,
        )
        if asked is None:
            return outcome
        anew = "boot" in outcome.actions
        if anew and listener is not None and not check_mode:
            ready_record.write(vm.paths, ready_record.boot(vm.paths, vm.supervisor.pid()), [], listened=True)
        left, seconds = _left(vm, asked, anew=anew)
        waits = (f"wait for {', '.join(map(str, left))}",) if left and seconds > AGAIN_SECONDS else ()
        if check_mode:
            return replace(outcome, actions=(*outcome.actions, *waits))
        met = _wait(vm, asked, left, seconds, listener)
    facts = {**outcome.facts, "ready_after": {str(condition): after for condition, after in met.items()}}
    return replace(outcome, actions=(*outcome.actions, *waits), facts=facts)


def _asked(item: Mapping[str, Any], vm: Vm) -> Readiness | None:
    """Return what is waited for: by the options, or where they name no payload, by the record."""
    if (item.get("state") or "running") not in ("running", "restarted"):
        return None
    if item.get("payload") is not None:
        return readiness.parse(item)
    given = {key: value for key, value in item.items() if value is not None}
    return readiness.parse({**(vm_record.read(vm.paths) or {}).get("options", {}), **given})


def _left(vm: Vm, asked: Readiness, *, anew: bool) -> tuple[list[Condition], float]:
    """Return what is still to be waited for, and how long: not long for a VM that was ready in this boot.

    A guest that was started without us, such as with its host, has reported what nobody has heard, and does so once.
    """
    this_boot = ready_record.boot(vm.paths, vm.supervisor.pid())
    seen = [] if anew else ready_record.seen(vm.paths, this_boot)
    told = anew or ready_record.listened(vm.paths, this_boot)
    left = [
        condition
        for condition in asked.conditions
        if not (condition.once and str(condition) in seen) and (told or condition.kind != "notify")
    ]
    known = all(str(condition) in seen for condition in asked.conditions)
    return left, min(asked.timeout, AGAIN_SECONDS) if known else asked.timeout


def _wait(
    vm: Vm, asked: Readiness, left: Sequence[Condition], seconds: float, listener: Listener | None
) -> dict[Condition, float]:
    now = current(vm)
    if now.pid is None:
        raise MicrovmError("the VM ended right after its boot", option="wait_for")
    probe = Probe(vm, now, asked, listener)
    try:
        if any(condition.kind in ("serial", "cloud_init") for condition in left):
            probe.attach()
        if listener is not None and any(condition.kind == "notify" for condition in left):
            listener.open()
        met = readiness.wait(left, probe.ask, timeout=seconds)
    except NotReady as error:
        raise MicrovmError(
            f"the VM runs and was not ready within {seconds:g} seconds: {error}; {probe.last_words()}",
            option="wait_for",
        ) from error
    finally:
        probe.close()
    ready_record.write(
        vm.paths, ready_record.boot(vm.paths, now.pid), [str(condition) for condition in asked.conditions]
    )
    return met


class Probe:
    """Asks one VM for each condition."""

    def __init__(self, vm: Vm, now: Current, asked: Readiness, listener: Listener | None) -> None:
        self._vm = vm
        self._pid = now.pid
        self._config = now.info.get("config") or {}
        self._asked = asked
        self._listener = listener
        self._output: Output | None = None
        self._text = ""
        self._events: list[events.Event] = []
        self._event_log = events.EventLog(vm.paths.event_log)

    def attach(self) -> None:
        """Begin to read the serial port."""
        try:
            self._output = output(self._config.get("serial") or {}, self._vm.paths)
        except OSError as error:
            raise MicrovmError(f"the serial port cannot be read: {error}", option="wait_for.serial") from error

    def close(self) -> None:
        """Stop reading the serial port and the events."""
        self._event_log.close()
        if self._output is not None:
            self._output.close()

    def ask(self, condition: Condition) -> str | None:
        """Return None where the condition holds, else what was found. Raises MicrovmError where the VM has ended."""
        self._read()
        if self._vm.supervisor.pid() != self._pid:
            raise MicrovmError(
                f"the VM ended while it was waited for {condition}; {self.last_words()}", option="wait_for"
            )
        taps = [net["tap"] for net in self._config.get("net") or () if "tap" in net]
        first = taps[0] if taps else None
        address = str(self._asked.address)
        match condition.kind:
            case "api":
                state = self._state()
                return None if state == "Running" else f"the state is {state}"
            case "tap":
                down = [name for name in taps if not tap.has_carrier(name)]
                return f"nobody holds {', '.join(down)}" if down else None
            case "serial":
                return None if re.search(condition.pattern, self._text) else "it has not come"
            case "cloud_init":
                finished = re.search(readiness.CLOUD_INIT_FINISHED, self._text)
                return None if finished else "its final message has not come on the serial port"
            case "tcp":
                return guest_probe.tcp(address, condition.port, first)
            case "http":
                return guest_probe.http_answer(
                    address, condition.port, condition.path, condition.status, condition.pattern, first
                )
            case "notify":
                heard = self._listener is not None and self._listener.ready()
                return None if heard else "the guest has not reported READY=1"

    def _state(self) -> str:
        try:
            return str(self._vm.client(timeout=2.0).info()["state"])
        except MicrovmError as error:
            return f"not known ({error})"

    def _read(self) -> None:
        self._events += self._event_log.new()
        if self._output is not None:
            self._text = (self._text + self._output.new().decode(errors="replace"))[-_KEPT:]

    def last_words(self) -> str:
        """Return the ends of the serial log, of the event log and of what the VMM has printed."""
        self._read()
        serial = self._text
        if self._output is None and (self._config.get("serial") or {}).get("mode") == "File":
            with suppress(OSError, MicrovmError):
                serial = text_of(own_file(self._config["serial"], self._vm.paths))
        told = {
            "on the serial port": last_lines(serial, _TOLD_LINES),
            "events": [str(event) for event in self._events[-_TOLD_LINES:]],
        }
        tails = [f"{what}: {' / '.join(lines) or 'nothing'}" for what, lines in told.items()]
        return "; ".join([*tails, f"the VMM: {self._vm.supervisor.last_words()}"])
