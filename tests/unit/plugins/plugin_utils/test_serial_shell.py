# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The framing, with real shells: on a terminal as a guest's serial port is one, and behind a line that damages what it carries."""

from __future__ import annotations

import os
import pty
import random
import select
import shutil
import signal
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils.serial_shell import SerialError, SerialShell

SHELLS = [["dash", "-i"], ["busybox", "sh", "-i"], ["bash", "--norc", "-i"]]


class Terminal:
    """A shell on a terminal; ``noise`` comes in between now and then, as a kernel's messages do."""

    def __init__(self, argv: list[str], noise: bytes = b"", often: float = 0.0) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execvp(argv[0], argv)  # noqa: S606
        self._noise, self._often, self._random = noise, often, random.Random(1)  # noqa: S311

    def read(self, seconds: float) -> bytes:
        if not select.select([self.descriptor], [], [], seconds)[0]:
            return b""
        try:
            data = os.read(self.descriptor, 512)
        except OSError as error:
            raise SerialError("the line has ended") from error
        if self._random.random() < self._often:
            cut = self._random.randrange(len(data) + 1)
            return data[:cut] + self._noise + data[cut:]
        return data

    def write(self, data: bytes) -> None:
        os.write(self.descriptor, data)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.descriptor)


@pytest.fixture(params=SHELLS, ids=[shell[0] for shell in SHELLS])
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    if shutil.which(request.param[0]) is None:
        pytest.skip(f"{request.param[0]} is not installed")
    terminal = Terminal(request.param)
    yield terminal
    terminal.close()


@pytest.fixture
def shell(terminal: Terminal) -> Iterator[SerialShell]:
    shell = SerialShell(terminal, quiet=False)
    shell.open(60)
    yield shell
    shell.close()


def test_status_output_and_errors_are_apart(shell: SerialShell) -> None:
    assert shell.execute("echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")
    assert shell.execute("printf 'no line break'") == (0, b"no line break", b"")
    assert shell.execute("kill -9 $$")[0] == 137


def test_bytes_come_through_as_they_are(shell: SerialShell) -> None:
    data = bytes(range(256)) * 40
    assert shell.execute("cat", data) == (0, data, b"")
    assert shell.execute("cat", b"") == (0, b"", b"")


def test_a_command_may_be_of_any_length_and_kind(shell: SerialShell) -> None:
    text = "'\"$HOME`\\\n!\u00e9%s" * 1000
    assert shell.execute(f"cat <<'THE_END'\n{text}\nTHE_END\n") == (0, f"{text}\n".encode(), b"")


def test_files_there_and_back(shell: SerialShell, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(20_000)  # noqa: S311
    path = tmp_path / "a name with 'quotes' and $"
    shell.put(data, str(path))
    assert path.read_bytes() == data
    assert shell.get(str(path)) == data
    with pytest.raises(SerialError, match="cannot read '/no/such'"):
        shell.get("/no/such")
    with pytest.raises(SerialError):
        shell.put(b"x", "/no/such/file")


def test_the_shell_is_left_as_it_was_found(terminal: Terminal) -> None:
    for _turn in range(2):
        shell = SerialShell(terminal, quiet=False)
        shell.open(60)
        during = termios.tcgetattr(terminal.descriptor)
        assert not during[3] & termios.ECHO
        made = shell.execute("ls -d $(dirname $0)")[1].decode().strip()
        assert os.path.isdir(made)
        shell.close()
        assert not os.path.exists(made)
    heard = b""
    for _try in range(12):
        # A line that comes while bash takes the terminal back is lost; a person would type it again.
        terminal.write(b"stty -a; echo $((40 + 2))\n")
        while b"42" not in heard and (more := terminal.read(5)):
            heard += more
        if b"42" in heard:
            break
    assert {b"echo", b"icanon", b"icrnl", b"opost"} <= set(heard.replace(b";", b"").split())


def test_a_session_that_was_cut_off_is_taken_over(terminal: Terminal) -> None:
    SerialShell(terminal, quiet=False).open(60)
    shell = SerialShell(terminal, quiet=False)
    shell.open(60)
    assert shell.execute("echo again")[1] == b"again\n"
    shell.close()


def test_what_a_kernel_says_in_between_damages_nothing() -> None:
    terminal = Terminal(["dash", "-i"], noise=b"\r\n[  1.0] kernel: eth0\r\n", often=0.01)
    try:
        shell = SerialShell(terminal, quiet=False)
        shell.open(60)
        data = random.Random(3).randbytes(5_000)  # noqa: S311
        for _turn in range(5):
            assert shell.execute("cat", data) == (0, data, b"")
    finally:
        terminal.close()


def test_what_is_no_shell_is_told() -> None:
    terminal = Terminal(["cat"])
    try:
        with pytest.raises(SerialError, match="no shell answers on the serial line within 1 seconds"):
            SerialShell(terminal, quiet=False).open(1)
    finally:
        terminal.close()
