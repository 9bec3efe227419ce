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
_TRIES = 6
_ANSWER_SECONDS = 60.0
_SYNC_SECONDS = 2.0
_PROBE_SECONDS = 5.0
# A loop that takes lines without echo, editing or prompt. It is in a shell of its own, so that leaving it leaves no variable.
_LOOP = (
    'if [ -z "$MICROVM_SERIAL" ]; then ( stty raw -echo; MICROVM_SERIAL=1; '
    'while IFS= read -r line && [ "$line" != leave ]; do eval "$line" </dev/null; done; stty sane ); fi'
)


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

    def __init__(self, channel: Channel, *, quiet: bool = True) -> None:
        """With ``quiet``, the guest's kernel is kept from writing to its console meanwhile."""
        self._channel = channel
        self._quiet = quiet
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
        self._channel.write(f"{_LOOP}\n".encode())
        while not self._synced():
            if time.monotonic() > deadline:
                raise SerialError("the shell on the serial line does not let its terminal be set up; it takes stty")
        if self._quiet:
            self._ask("dmesg -n 1")
        self._directory = (self._ask("umask 077; mktemp -d") or "").strip()
        if not self._directory.startswith("/"):
            raise SerialError(f"the guest made no temporary directory; mktemp said {self._directory!r}")

    def close(self) -> None:
        """Leave the shell as it was found."""
        if self._directory:
            self._ask(f"rm -rf {shlex.quote(self._directory)}")
            self._directory = ""
            self._channel.write(b"leave\n")

    def execute(self, command: str, stdin: bytes | None = None) -> tuple[int, bytes, bytes]:
        """Run a command with ``sh``; return its exit status, its output and its error output."""
        place = self._directory
        self.put(command.encode(), f"{place}/command")
        if stdin is not None:
            self.put(stdin, f"{place}/stdin")
        source = f"{place}/stdin" if stdin is not None else "/dev/null"
        run = f"sh {place}/command <{source} >{place}/stdout 2>{place}/stderr; echo $? >{place}/status"
        self._ask(run, seconds=None)
        status = int(self.get(f"{place}/status"))
        return status, self.get(f"{place}/stdout"), self.get(f"{place}/stderr")

    def put(self, data: bytes, path: str) -> None:
        """Write a file of the guest."""
        target, coded = shlex.quote(path), f"{self._directory}/coded"
        text = base64.b64encode(data).decode()
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        steps = [f": >{coded}", *(f"printf %s {piece} >>{coded}" for piece in pieces)]
        for _try in range(_TRIES):
            if any(self._ask(step) is None for step in steps):
                continue
            found = self._ask(f"base64 -d <{coded} >{target} && sha256sum <{target}; rm -f {coded}") or ""
            if found.split()[:1] == [hashlib.sha256(data).hexdigest()]:
                return
            if "can't create" in found or "cannot create" in found or "No such file" in found:
                raise SerialError(f"the guest cannot write '{path}': {found.strip()}")
        raise SerialError(f"'{path}' did not reach the guest whole in {_TRIES} tries")

    def get(self, path: str) -> bytes:
        """Read a file of the guest. Raises SerialError where it is missing."""
        source = shlex.quote(path)
        for _try in range(_TRIES):
            answer = self._ask(f"sha256sum <{source} && base64 <{source}") or ""
            match = re.match(r"\s*([0-9a-f]{64})\s+-?\s*(.*)", answer, re.DOTALL)
            if match:
                try:
                    data = base64.b64decode("".join(match[2].split()), validate=True)
                except ValueError:
                    continue
                if hashlib.sha256(data).hexdigest() == match[1]:
                    return data
            elif "can't open" in answer or "cannot open" in answer or "No such file" in answer:
                raise SerialError(f"the guest cannot read '{path}': {answer.strip()}")
        raise SerialError(f"'{path}' did not come whole in {_TRIES} tries")

    def _ask(self, command: str, seconds: float | None = _ANSWER_SECONDS) -> str | None:
        """Run a line in the shell; return what it printed, or None where what it printed around that is damaged.

        Raises SerialError where nothing comes for so many seconds.
        """
        begin, end = secrets.token_hex(8), secrets.token_hex(8)
        # In two halves, so that what a terminal echoes is no answer.
        line = f"printf '\\n%s%s\\n' {begin[:8]} {begin[8:]}; {{ {command}; }} 2>&1; {_marker(end)}"
        self._channel.write(f"{line}\n".encode())
        words, silence, patience = [end.encode()], 0.0, _PROBE_SECONDS
        while True:
            try:
                word, answer = self._until(words, patience)
                break
            except TimeoutError as error:
                silence += patience
                if seconds is not None and silence >= seconds:
                    raise SerialError(
                        f"the shell on the serial line has not answered for {silence:g} seconds"
                    ) from error
                # Its end may be damaged. A shell that is still at work answers this once it is done.
                patience *= 2
                words.append(secrets.token_hex(8).encode())
                self._channel.write(f"{_marker(words[-1].decode())}\n".encode())
        _before, begun, printed = answer.partition(begin.encode())
        if word != words[0] or not begun:
            return None
        return printed.decode(errors="replace").replace("\r", "").strip("\n")

    def _synced(self) -> bool:
        """Whether a shell answers now."""
        word = secrets.token_hex(8)
        self._channel.write(f"{_marker(word)}\n".encode())
        try:
            self._until([word.encode()], _SYNC_SECONDS)
        except TimeoutError:
            return False
        return True

    def _until(self, words: list[bytes], seconds: float) -> tuple[bytes, bytes]:
        """Read up to one of the words; return it and what came before. Raises TimeoutError where nothing comes for so long."""
        heard = time.monotonic()
        while True:
            for word in words:
                before, found, after = self._received.partition(word)
                if found:
                    self._received = after
                    return word, before
            data = self._channel.read(min(seconds, 1.0))
            self._received += data
            if data:
                heard = time.monotonic()
            elif time.monotonic() - heard >= seconds:
                raise TimeoutError


def _marker(word: str) -> str:
    return f"printf '\\n%s%s\\n' {word[:8]} {word[8:]}"
