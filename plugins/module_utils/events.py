# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a VMM reports to its event monitor.

Facts from v53.0's source: event_monitor/src/lib.rs writes one JSON object after the other, pretty-printed, with ``timestamp``
(``secs`` and ``nanos`` since the VMM was started), ``source``, ``event`` and ``properties`` (null, or strings by name);
vmm/src/lib.rs ends each by a blank line. Neither spaces nor line breaks are relied on here.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .tail import Tail

_BOOTS = frozenset({"booted", "rebooted", "restored"})


@dataclass(frozen=True, slots=True)
class Event:
    """One event: ``seconds`` since the VMM was started, such as ``vm`` ``booted``."""

    seconds: float
    source: str
    event: str
    properties: Mapping[str, str]

    def __str__(self) -> str:
        details = "".join(f" {name}={value}" for name, value in self.properties.items())
        return f"{self.seconds:.3f} {self.source} {self.event}{details}"


class Parser:
    """Turns what comes in, cut anywhere, into events. What is no event is skipped."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder()
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._text = ""

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that these bytes complete."""
        self._text += self._decode(data)
        events: list[Event] = []
        while True:
            start = self._text.find("{")
            if start < 0:
                self._text = ""
                return events
            try:
                value, end = self._decoder.raw_decode(self._text, start)
            except (ValueError, RecursionError):
                # Not yet complete; or what a VMM that was killed left, where another object begins after it.
                after = self._text.find("\n{", start + 1)
                if after < 0:
                    self._text = self._text[start:]
                    return events
                self._text = self._text[after + 1 :]
                continue
            self._text = self._text[end:]
            event = _event(value)
            if event is not None:
                events.append(event)


def _event(value: Mapping[str, object]) -> Event | None:
    time, source, event = value.get("timestamp"), value.get("source"), value.get("event")
    if not (isinstance(time, dict) and isinstance(source, str) and isinstance(event, str)):
        return None
    since = [time.get("secs", 0), time.get("nanos", 0)]
    if not all(isinstance(number, int | float) for number in since):
        return None
    properties = value.get("properties")
    return Event(
        seconds=since[0] + since[1] / 1e9,
        source=source,
        event=event,
        properties=properties if isinstance(properties, dict) else {},
    )


class EventLog:
    """A VMM's event log, read while the VMM writes it. One that another VMM has begun anew is read from its beginning."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._parser = Parser()

    def new(self) -> list[Event]:
        """Return the events that have come since the last call."""
        return self._parser.feed(self._tail.new())

    def close(self) -> None:
        """Let go of the log."""
        self._tail.close()


def read(path: Path) -> list[Event]:
    """Return the events so far; none where there is no log."""
    log = EventLog(path)
    try:
        return log.new()
    finally:
        log.close()


def boots(events: Iterable[Event]) -> int:
    """Return how often a guest has begun to run, by the VMM's doing or its own."""
    return sum(event.source == "vm" and event.event in _BOOTS for event in events)
