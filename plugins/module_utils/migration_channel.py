# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way to another host for one VM's disks and memory: ssh, with a key for this migration alone.

The other host lets the key run one command, ``microvm receive NAME``, and nothing else (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
One connection carries it all, so that no guest that is paused waits for another.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import disk_passes, memory_frames, relay
from .disk_passes import Source
from .errors import CommandFailed, MicrovmError
from .runner import Runner
from .tail import quoted
from .vm_paths import Paths

# What is asked of the other host's command.
WORD = "guest"
_DIRECTORY = ".migration"
_PUBLIC_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{68} microvm-migration-[a-z0-9-]{1,63}")
_MOST_WORDS = 4096
_FINISH_SECONDS = 30.0
_CLOSE_SECONDS = 10.0


def directory(paths: Paths) -> Path:
    """Return where the key of a VM's migration is."""
    return paths.state / _DIRECTORY


def make_key(paths: Paths, runner: Runner) -> str:
    """Make a key and return its public half, for the other host. Raises CommandFailed."""
    clear(paths)
    directory(paths).mkdir(mode=0o700)
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"microvm-migration-{paths.name}"]
    runner.run([*argv, "-f", str(directory(paths) / "key")])
    return (directory(paths) / "key.pub").read_text().strip()


def clear(paths: Paths) -> None:
    """Remove the key."""
    shutil.rmtree(directory(paths), ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Channel:
    """Another host: its address, port and user for ssh, and its public host key, such as ``ssh-ed25519 AAAA...``."""

    paths: Paths
    host: str
    user: str
    port: int
    host_key: str

    def argv(self) -> list[str]:
        """Return the command that reaches ``microvm receive`` there."""
        if "\n" in self.host_key:
            raise MicrovmError("a host's key is one line", option="host_key")
        known = directory(self.paths) / "known_hosts"
        known.write_text(f"migration {self.host_key}\n")
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "20",
            "HostKeyAlias": "migration",
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(known),
            "ServerAliveInterval": "5",
            "LogLevel": "ERROR",
        }
        argv = ["ssh", "-F", "none", "-i", str(directory(self.paths) / "key"), "-p", str(self.port), "-T"]
        for name, value in options.items():
            argv += ["-o", f"{name}={value}"]
        return [*argv, "--", f"{self.user}@{self.host}", WORD]


class Connection:
    """A connection with the other host: first for the disks, then for the memory."""

    def __init__(self, channel: Channel, *, patience: float) -> None:
        """Connect. A wait for the other host is given up after ``patience`` seconds, and at the ``deadline`` where one is set."""
        self._host = channel.host
        self._patience = patience
        self.deadline: float | None = None
        self.socket, theirs = socket.socketpair()
        with theirs:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                channel.argv(), stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.PIPE
            )
        self._said = bytearray()
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()

    def _listen(self) -> None:
        """Read all that ssh and the other host say, and keep the beginning: its end is theirs to choose."""
        while self._process.stderr is not None and (data := os.read(self._process.stderr.fileno(), 4096)):
            self._said += data[: _MOST_WORDS - len(self._said)]

    def send_pass(self, sources: Sequence[Source]) -> int:
        """Send what differs of files, and wait until the other host has it on disk; return how many bytes that was.

        Raises CommandFailed.
        """
        try:
            sent = disk_passes.send_pass(sources, self._send)
            self._limit()
            if self.socket.recv(1) != disk_passes.TAKEN:
                raise ConnectionResetError
        except OSError as error:
            waited = isinstance(error, TimeoutError)
            raise CommandFailed(
                f"the disks could not be copied to '{self._host}': "
                f"{'it took nothing for too long' if waited else self.close()}"
            ) from error
        return sent

    def _send(self, data: bytes) -> None:
        self._limit()
        self.socket.sendall(data)

    def _limit(self) -> None:
        left = self._patience if self.deadline is None else self.deadline - time.monotonic()
        self.socket.settimeout(max(0.001, min(self._patience, left)))

    def carry_memory(self, vmm: socket.socket) -> None:
        """Carry what this host's VMM and the other one's say to each other, until one of them ends. Raises OSError."""
        self._send(disk_passes.END_OF_PASSES)
        relay.relay(self.socket.fileno(), vmm.fileno(), vmm.fileno(), keep=memory_frames.framed)

    def finish(self) -> bool:
        """Tell the other host that the VMM here has ended; return whether it has the guest, in the state that it had here."""
        try:
            self.socket.settimeout(_FINISH_SECONDS)
            self.socket.sendall(memory_frames.LEFT)
            self.socket.shutdown(socket.SHUT_WR)
            return self._process.wait(_FINISH_SECONDS) == 0
        except (OSError, subprocess.TimeoutExpired):
            return False

    def cut(self) -> None:
        """End the connection, whatever is under way on it."""
        self._process.kill()

    def close(self) -> str:
        """Close it; return what the other host and ssh had to say."""
        self.socket.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listening.join(_CLOSE_SECONDS)
        return quoted(self._said.decode(errors="replace"))

    def __enter__(self) -> Connection:
        """Return it; it is closed at the end of the block."""
        return self

    def __exit__(self, error: object, *_more: object) -> None:
        """Close it; after an error at once, since a guest may stand still."""
        if error is not None:
            self.cut()
        self.close()


class Tunnel:
    """A socket at which this host's VMM finds the other host's. It takes one connection."""

    def __init__(self, connection: Connection, path: Path, prepare: Callable[[Path], None]) -> None:
        """Listen at ``path``; ``prepare`` lets the VMM connect to it."""
        path.unlink(missing_ok=True)
        self._path = path
        self._connection = connection
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        prepare(path)
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):  # closed before anyone came, or cut
            vmm, _address = self._listener.accept()
            with vmm:
                self._connection.carry_memory(vmm)

    def close(self) -> None:
        """Take the socket away; what is carried is at its end, or is cut off there."""
        with suppress(OSError):  # wakes the thread where no one came
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_CLOSE_SECONDS)
        self._path.unlink(missing_ok=True)


def authorized_key(public_key: str | None, command: str, *, until: time.struct_time) -> str:
    """Return the line for the other host's authorized_keys; it does nothing any more after ``until``, a local time.

    Raises MicrovmError for a key that could be more than one of ours.
    """
    if not _PUBLIC_KEY.fullmatch(public_key or "") or "\n" in command:
        raise MicrovmError(
            f"{public_key!r} is no key such as state=offered makes: ssh-ed25519, and the name of the migration",
            option="offer",
        )
    quoted_command = command.replace("\\", "\\\\").replace('"', '\\"')
    return f'command="{quoted_command}",expiry-time="{time.strftime("%Y%m%d%H%M%S", until)}",restrict {public_key}'
