# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commands and files over a serial line with a POSIX shell at its other end.

The line has no errors of its own, and no flow control: a guest loses what comes faster than it reads, and its kernel writes
messages in between. So what is sent goes in short pieces, each acknowledged, what comes is base64, and both are compared by
SHA-256 and sent again where they differ. The guest needs sh, stty, mktemp, base64 and sha256sum, which coreutils and busybox have.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import shlex
import time
from typing import Protocol

# Less than a terminal's input buffer, N_TTY_BUF_SIZE of linux/tty.h: 4096.
_PIECE = 2048
_TRIES = 4
_ANSWER_SECONDS = 60.0
_SYNC_SECONDS = 2.0
# Within the agent: no echo, no line editing, no length of a line. ``cat`` keeps the shell from being an interactive one.
_AGENT = 'if [ -z "$MICROVM_SERIAL" ]; then stty raw -echo; cat | MICROVM_SERIAL=1 sh; stty sane; fi'


class Channel(Protocol):
    """Both directions of the line."""

    def read(self, seconds: float) -> bytes:
        """Return what has come, b"" where nothing has within so many seconds. Raises SerialError at its end."""

    def write(self, data: bytes) -> None:
        """Send all of it."""


class SerialError(Exception):
    """The other end does not answer as a shell does, or the line has ended."""


class SerialShell:
    """A shell at the other end of a line, in which commands are run one after the other."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._received = b""
        self._directory = ""

    def open(self, seconds: float) -> None:
        """Find the shell. Raises SerialError where none answers within so many seconds."""
        deadline = time.monotonic() + seconds
        self._channel.write(b"\n")
        while not self._synced():
            if time.monotonic() > deadline:
                tail = self._received[-200:].decode(errors="replace").strip()
                raise SerialError(
                    f"no shell answers on the serial line within {seconds:g} seconds; the last that came is {tail!r}. "
                    "It takes a root shell that asks for no login"
                )
        self._channel.write(f"{_AGENT}\n".encode())
        while not self._synced():
            if time.monotonic() > deadline:
                raise SerialError("the shell on the serial line does not let its terminal be set up; it takes stty")
        # The kernel's messages would come between.
        self._ask("dmesg -n 1 2>/dev/null")
        self._directory = self._ask("umask 077; mktemp -d").strip()
        if not self._directory.startswith("/"):
            raise SerialError(f"the guest made no temporary directory; mktemp said {self._directory!r}")

    def close(self) -> None:
        """Leave the shell as it was found."""
        if self._directory:
            self._ask(f"rm -rf {shlex.quote(self._directory)}")
            self._directory = ""
            # cat ends with what it cannot pass on.
            self._channel.write(b"exit\n")
            time.sleep(0.1)
            self._channel.write(b"\n")

    def execute(
        self, command: str, stdin: bytes | None = None, seconds: float | None = None
    ) -> tuple[int, bytes, bytes]:
        """Run a command with ``sh``; return its exit status, its output and its error output."""
        place = self._directory
        self.put(command.encode(), f"{place}/command")
        if stdin is not None:
            self.put(stdin, f"{place}/stdin")
        source = f"{place}/stdin" if stdin is not None else "/dev/null"
        status = self._ask(f"sh {place}/command <{source} >{place}/stdout 2>{place}/stderr; echo $?", seconds)
        return int(status), self.get(f"{place}/stdout"), self.get(f"{place}/stderr")

    def put(self, data: bytes, path: str) -> None:
        """Write a file of the guest."""
        target, coded = shlex.quote(path), f"{self._directory}/coded"
        text = base64.b64encode(data).decode()
        for _try in range(_TRIES):
            self._ask(f": >{coded}")
            for start in range(0, len(text), _PIECE):
                self._ask(f"printf %s {text[start : start + _PIECE]} >>{coded}")
            found = self._ask(f"base64 -d <{coded} >{target} && sha256sum <{target}; rm -f {coded}")
            if found.split()[:1] == [hashlib.sha256(data).hexdigest()]:
                return
            if "can't create" in found or "cannot create" in found:
                raise SerialError(f"the guest cannot write '{path}': {found.strip()}")
        raise SerialError(f"'{path}' did not reach the guest whole in {_TRIES} tries: {found.strip()}")

    def get(self, path: str) -> bytes:
        """Read a file of the guest. Raises SerialError where it is missing."""
        source = shlex.quote(path)
        for _try in range(_TRIES):
            answer = self._ask(f"sha256sum <{source} && base64 <{source}")
            match = re.match(r"\s*([0-9a-f]{64})\s+-?\s*(.*)", answer, re.DOTALL)
            if match:
                try:
                    data = base64.b64decode("".join(match[2].split()), validate=True)
                except ValueError:
                    continue
                if hashlib.sha256(data).hexdigest() == match[1]:
                    return data
            elif "sh:" in answer:
                raise SerialError(f"the guest cannot read '{path}': {answer.strip()}")
        raise SerialError(f"'{path}' did not come whole in {_TRIES} tries")

    def _ask(self, command: str, seconds: float | None = _ANSWER_SECONDS) -> str:
        """Run a line in the shell; return what it printed. Raises SerialError where its end does not come in time."""
        begin, end = secrets.token_hex(8), secrets.token_hex(8)
        # In two halves, so that what a terminal echoes is no answer.
        line = f"printf '\\n%s%s\\n' {begin[:8]} {begin[8:]}; {{ {command}\n}} 2>&1; printf '\\n%s%s\\n' {end[:8]} {end[8:]}\n"
        self._channel.write(line.encode())
        try:
            answer = self._until(end.encode(), seconds)
        except TimeoutError as error:
            raise SerialError(f"the shell on the serial line has not answered for {seconds:g} seconds") from error
        return answer.partition(begin.encode())[2].decode(errors="replace").replace("\r", "").strip("\n")

    def _synced(self) -> bool:
        """Whether a shell answers now."""
        word = secrets.token_hex(8)
        self._channel.write(f"printf '\\n%s%s\\n' {word[:8]} {word[8:]}\n".encode())
        try:
            self._until(word.encode(), _SYNC_SECONDS)
        except TimeoutError:
            return False
        return True

    def _until(self, word: bytes, seconds: float | None) -> bytes:
        """Read up to a word. Raises TimeoutError where nothing comes for so many seconds."""
        heard = time.monotonic()
        while word not in self._received:
            data = self._channel.read(1.0)
            self._received += data
            if data:
                heard = time.monotonic()
            elif seconds is not None and time.monotonic() - heard >= seconds:
                raise TimeoutError
        answer, _word, self._received = self._received.partition(word)
        return answer
