# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import events
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.events import Event, EventLog, Parser

BOOTED = {"timestamp": {"secs": 1, "nanos": 500_000_000}, "source": "vm", "event": "booted", "properties": None}
ACTIVATED = {
    "timestamp": {"secs": 2, "nanos": 0},
    "source": "virtio-device",
    "event": "activated",
    "properties": {"id": "_disk0 {\u00e9"},
}
EXPECTED = [
    Event(1.5, "vm", "booted", {}),
    Event(2.0, "virtio-device", "activated", {"id": "_disk0 {\u00e9"}),
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("between", ["", "\n", "\n\n"])
def test_events_come_whole_wherever_the_stream_is_cut(indent: int | None, between: str) -> None:
    texts = [json.dumps(event, indent=indent, ensure_ascii=False) + between for event in (BOOTED, ACTIVATED)]
    stream = "".join(texts).encode()
    for cut in range(len(stream) + 1):
        parser = Parser()
        assert parser.feed(stream[:cut]) + parser.feed(stream[cut:]) == EXPECTED
    parser = Parser()
    assert [event for byte in stream for event in parser.feed(bytes([byte]))] == EXPECTED


def test_what_a_killed_vmm_left_is_skipped() -> None:
    half = json.dumps(BOOTED, indent=2)[:40]
    assert Parser().feed(f'{half}\n\n{json.dumps(BOOTED, indent=2)}\n\n{{"other": 1}}\n\n'.encode()) == EXPECTED[:1]
    assert Parser().feed(b"\0\0no event\n") == []


def test_a_log_is_read_on_and_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    log = EventLog(path)
    assert log.new() == []
    path.write_text(json.dumps(BOOTED, indent=2) + "\n\n")
    assert log.new() == EXPECTED[:1]
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(ACTIVATED, indent=2) + "\n\n")
    assert log.new() == EXPECTED[1:]
    assert log.new() == []
    path.unlink()
    path.write_text(json.dumps(BOOTED) + "\n\n")
    assert log.new() == EXPECTED[:1]


def test_boots_are_counted() -> None:
    happened = [Event(0, "vm", name, {}) for name in ("booting", "booted", "rebooting", "rebooted", "shutdown")]
    assert events.boots(happened) == 2
    assert events.boots([Event(0, "vmm", "booted", {})]) == 0


def test_an_event_in_words() -> None:
    assert str(EXPECTED[1]) == "2.000 virtio-device activated id=_disk0 {\u00e9"


def test_what_a_vmm_that_was_taken_over_writes_is_no_event() -> None:
    odd = '{"timestamp": {"secs": "1"}, "source": "vm", "event": "booted"}'
    deep = '{"a":' * 100_000
    assert Parser().feed(f"{odd}\n{deep}\n".encode()) == []
