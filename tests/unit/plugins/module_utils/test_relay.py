# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import socket
import threading

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.relay import relay


def started(line: socket.socket, source: int, sink: int) -> tuple[threading.Thread, list[str]]:
    ended: list[str] = []
    thread = threading.Thread(target=lambda: ended.append(relay(line.fileno(), source, sink)))
    thread.start()
    return thread, ended


def test_a_line_that_takes_nothing_holds_up_its_own_direction_alone() -> None:
    far, line = socket.socketpair()
    source_out, source_in = os.pipe()
    sink_out, sink_in = os.pipe()
    thread, ended = started(line, source_out, sink_in)
    sent = b"x" * 1_000_000
    writer = threading.Thread(target=lambda: os.write(source_in, sent))
    writer.start()
    far.sendall(b"from the guest")
    assert os.read(sink_out, 100) == b"from the guest", "while nobody reads what was sent"
    received = b""
    while len(received) < len(sent):
        received += far.recv(65536)
    assert received == sent
    writer.join()
    far.close()
    thread.join()
    assert ended == ["line"]
    for descriptor in (source_out, source_in, sink_out, sink_in):
        os.close(descriptor)
    line.close()


def test_the_end_of_the_source_comes_after_its_last_byte() -> None:
    far, line = socket.socketpair()
    source_out, source_in = os.pipe()
    sink_out, sink_in = os.pipe()
    os.write(source_in, b"last words")
    os.close(source_in)
    thread, ended = started(line, source_out, sink_in)
    thread.join()
    assert (ended, far.recv(100)) == (["source"], b"last words")
    for descriptor in (source_out, sink_out, sink_in):
        os.close(descriptor)
    far.close()
    line.close()
