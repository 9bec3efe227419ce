# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A person on the serial port of a VM, over ssh."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import SECONDS, Node

ESCAPE = b"\x1d"


class Person:
    """Someone at ``microvm console`` in a terminal that ssh makes on the host."""

    def __init__(self, node: Node) -> None:
        argv = [*node.ssh_argv("-tt"), "microvm console web"]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.seen = b""

    def expect(self, word: bytes) -> None:
        """Read until ``word`` has come; what comes after it is for the next."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + SECONDS
        while word not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.process.stdout], [], [], 0.1)[0]:
                read = os.read(self.process.stdout.fileno(), 65536)
                assert read, self.seen
                self.seen += read
        self.seen = self.seen.partition(word)[2]

    def send(self, keys: bytes) -> None:
        assert self.process.stdin is not None
        os.write(self.process.stdin.fileno(), keys)


@contextmanager
def person(node: Node) -> Iterator[Person]:
    at_it = Person(node)
    try:
        yield at_it
    finally:
        at_it.process.kill()
        at_it.process.wait()


@pytest.mark.parametrize("mode", ["pty", "socket"])
def test_a_person_types_and_leaves_by_the_escape_key(node: Node, mode: str) -> None:
    pid = node.vm("web", serial={"mode": mode})["pid"]
    with person(node) as first:
        first.expect(b"attached to the serial of 'web'; Ctrl-] leaves")
        first.send(b"echo")
        first.expect(b"echo")
        with person(node) as second:
            second.expect(b"somebody is attached to its serial already")
            assert second.process.wait(SECONDS) == 1
        first.send(ESCAPE)
        assert first.process.wait(SECONDS) == 0
    assert node.info("web")["pid"] == pid


def test_a_person_stays_over_a_restart_of_the_unit(node: Node) -> None:
    node.vm("web", serial={"mode": "pty"})
    with person(node) as at_it:
        at_it.expect(b"attached")
        node.ssh("systemctl restart microvm@web")
        at_it.expect(b"the line ended; waiting for 'web'")
        at_it.expect(b"attached")
        at_it.send(b"again")
        at_it.expect(b"again")
        node.vm("web", by_name=True, state="absent", grace=0)
        at_it.expect(b"'web' is gone")
        assert at_it.process.wait(SECONDS) == 0


def test_a_log_is_shown_as_it_is_written(node: Node) -> None:
    node.vm("web")
    with person(node) as at_it:
        at_it.expect(b"pvh guest")
        at_it.send(ESCAPE)
        assert at_it.process.wait(SECONDS) == 0
