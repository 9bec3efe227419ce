# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A person's terminal, a real pty, on the tiny PVH guest, which prints a banner and echoes; ``q`` ends it, ``r`` resets it."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pvh_guest
import pytest
from vm_host import Host

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import console
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_state import Vm

SECONDS = 15  # until something that should happen is said not to
PROGRAM = """
import sys
from pathlib import Path
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import console
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_state import Vm
vm = Vm.of("web", state_dir=Path(sys.argv[1]), run_dir=Path(sys.argv[2]))
if sys.argv[3] == "pipe":
    console.pipe(vm, "serial", 0, 1)
else:
    console.attend(vm, sys.argv[3], escape=console.escape_byte("^]"))
"""


class Terminal:
    """A terminal with the program in it."""

    def __init__(self, host: Host, which: str = "serial") -> None:
        self.main, self.sub = os.openpty()
        self.before = termios.tcgetattr(self.sub)
        argv = [sys.executable, "-c", PROGRAM, str(host.state_dir), str(host.run_dir), which]
        self.process = subprocess.Popen(argv, stdin=self.sub, stdout=self.sub, stderr=self.sub, start_new_session=True)
        self.seen = b""

    def expect(self, word: bytes) -> None:
        """Read until ``word`` has come; what comes after it is for the next."""
        deadline = time.monotonic() + SECONDS
        while word not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.main], [], [], 0.1)[0]:
                self.seen += os.read(self.main, 65536)
        self.seen = self.seen.partition(word)[2]

    def send(self, keys: bytes) -> None:
        os.write(self.main, keys)

    def ended(self) -> int:
        """Wait for the end; the terminal is as it was."""
        status = self.process.wait(SECONDS)
        assert termios.tcgetattr(self.sub) == self.before
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.main)
        os.close(self.sub)


@pytest.fixture(params=["pty", "socket"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def attached(host: Host, terminals: list[Terminal], which: str = "serial") -> Terminal:
    terminal = Terminal(host, which)
    terminals.append(terminal)
    terminal.expect(b"Ctrl-] leaves]\r\n")
    return terminal


def meet(host: Host, terminal: Terminal, mode: str) -> None:
    """See the guest's banner; where it is not told to one who attaches later, the echo of a key."""
    if not host.tells_what_was_written(mode):
        terminal.send(b"?")
    terminal.expect(b"pvh guest\r\n" if host.tells_what_was_written(mode) else b"?")


def test_keys_go_to_the_guest_until_the_escape_key(host: Host, mode: str, terminals: list[Terminal]) -> None:
    host.ensure("web", serial={"mode": mode})
    terminal = attached(host, terminals)
    meet(host, terminal, mode)
    terminal.send(b"\x03\x1a\x04 echo")  # what a terminal that is not raw would take for itself
    terminal.expect(b"\x03\x1a\x04 echo")
    terminal.send(b"last\x1dlost")
    assert terminal.ended() == 0
    assert host.info("web")["state"] == "running"


def test_the_next_start_is_attached_to(host: Host, mode: str, terminals: list[Terminal]) -> None:
    if not host.tells_what_was_written(mode):
        pytest.skip("the release does not tell what a guest has written before one attaches")
    host.ensure("web", serial={"mode": mode})
    terminal = attached(host, terminals)
    terminal.expect(b"pvh guest\r\n")
    terminal.send(b"r")  # the guest's own reset
    terminal.expect(b"pvh guest\r\n")
    host.ensure("web", state="restarted", by_name=True, grace=0)
    terminal.expect(b"pvh guest\r\n")
    terminal.send(b"again")
    terminal.expect(b"again")
    terminal.send(b"q")  # the guest powers off, and the VMM ends
    terminal.expect(b"waiting for 'web'")
    terminal.send(b"\x1d")
    assert terminal.ended() == 0


def test_a_vm_that_is_removed_ends_it(host: Host, terminals: list[Terminal]) -> None:
    host.ensure("web", serial={"mode": "pty"})
    terminal = attached(host, terminals)
    host.ensure("web", state="absent", by_name=True, grace=0)
    terminal.expect(b"'web' is gone")
    assert terminal.ended() == 0


def test_a_signal_leaves_the_terminal_as_it_was(host: Host, terminals: list[Terminal]) -> None:
    host.ensure("web", serial={"mode": "pty"})
    terminal = attached(host, terminals)
    meet(host, terminal, "pty")
    assert termios.tcgetattr(terminal.sub) != terminal.before
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.ended() == 128 + signal.SIGTERM


def test_a_second_person_is_told(host: Host, mode: str, terminals: list[Terminal]) -> None:
    host.ensure("web", serial={"mode": mode})
    meet(host, attached(host, terminals), mode)
    second = Terminal(host)
    terminals.append(second)
    second.expect(b"somebody is attached to its serial already")
    assert second.ended() == 1


def test_a_file_is_shown_as_it_grows(host: Host, terminals: list[Terminal]) -> None:
    done = host.ensure("web")
    terminal = attached(host, terminals)
    terminal.expect(b"pvh guest\r\n")
    with open(done.facts["serial_log"], "ab") as log:
        log.write(b"one more\n")
    terminal.expect(b"one more\r\n")
    terminal.send(b"not for the guest")
    terminal.send(b"\x03")
    assert terminal.ended() == 0


def test_where_nobody_can_attach(host: Host) -> None:
    host.ensure("web", serial={"mode": "off"})
    vm = Vm.of("web", state_dir=host.state_dir, run_dir=host.run_dir)
    with pytest.raises(MicrovmError, match="it is 'off', to which nobody can attach"):
        console.pipe(vm, "serial", 0, 1)


def test_the_size_of_the_window_is_passed_on(host: Host, terminals: list[Terminal]) -> None:
    done = host.ensure("web", console={"mode": "pty"})
    terminal = attached(host, terminals, "console")
    with open(done.facts["console_pty"], "rb", buffering=0) as pty:
        for rows in (30, 50):
            fcntl.ioctl(terminal.main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 100, 0, 0))
            # A terminal tells its foreground process group, which a program in a session without one has not.
            terminal.process.send_signal(signal.SIGWINCH)
            deadline = time.monotonic() + SECONDS
            while struct.unpack("HHHH", fcntl.ioctl(pty, termios.TIOCGWINSZ, bytes(8)))[:2] != (rows, 100):
                assert time.monotonic() < deadline


def test_a_program_gets_every_byte(host: Host, mode: str) -> None:
    host.ensure("web", serial={"mode": mode})
    argv = [sys.executable, "-c", PROGRAM, str(host.state_dir), str(host.run_dir), "pipe"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        commands = pvh_guest.POWER_OFF + pvh_guest.RESET + pvh_guest.FILL
        sent = bytes(byte for byte in range(256) if byte not in commands)
        program.stdin.write(sent)
        program.stdin.flush()
        heard = b""
        while sent not in heard:
            assert select.select([program.stdout], [], [], SECONDS)[0], heard
            more = os.read(program.stdout.fileno(), 1000)
            assert more, heard
            heard += more
        program.stdin.close()
        assert program.wait(SECONDS) == 0


@pytest.mark.parametrize(("text", "byte"), [("^]", b"\x1d"), ("^a", b"\x01"), ("^A", b"\x01"), ("none", None)])
def test_escape_keys(text: str, byte: bytes | None) -> None:
    assert console.escape_byte(text) == byte


@pytest.mark.parametrize("text", ["", "]", "^", "^!", "^]]", "^\u00e9"])
def test_what_is_no_escape_key(text: str) -> None:
    with pytest.raises(MicrovmError, match="option 'escape'"):
        console.escape_byte(text)
