# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way to another host for one VM's disks and memory: ssh, with a key for this migration alone.

The other host lets the key run one command, ``microvm receive NAME``, and nothing else (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import CommandFailed, MicrovmError
from .runner import Runner
from .vm_paths import Paths

_DIRECTORY = ".migration"


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

    def argv(self, word: str) -> list[str]:
        """Return the command that reaches ``microvm receive`` there, which does what ``word`` says."""
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
        return [*argv, "--", f"{self.user}@{self.host}", word]

    def send_files(self, files: list[Path]) -> None:
        """Send files that lie in the VM's directory, with their holes. Raises CommandFailed."""
        names = [str(file.relative_to(self.paths.state)) for file in files]
        tar = ["tar", "--create", "--sparse", "--file=-", f"--directory={self.paths.state}", "--", *names]
        with subprocess.Popen(tar, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as packing:
            sent = subprocess.run(
                self.argv("disks"), stdin=packing.stdout, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
            )
            if packing.stdout is not None:
                packing.stdout.close()
        if sent.returncode != 0 or packing.returncode != 0:
            raise CommandFailed(f"the disks could not be copied to '{self.host}': {_text(sent.stderr)}")


class Tunnel:
    """A socket at which this host's VMM finds the other host's. It takes one connection."""

    def __init__(self, channel: Channel, path: Path, prepare: Callable[[Path], None]) -> None:
        """Listen at ``path``; ``prepare`` lets the VMM connect to it."""
        path.unlink(missing_ok=True)
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        prepare(path)
        self._listener.listen(1)
        self._argv = channel.argv("memory")
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            connection, _address = self._listener.accept()
        except OSError:
            return  # closed before anyone came
        with connection:
            self._process = subprocess.Popen(
                self._argv, stdin=connection.fileno(), stdout=connection.fileno(), stderr=subprocess.PIPE
            )

    def cut(self) -> None:
        """End the connection, whatever is under way on it."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> str:
        """Close all; return what ssh had to say."""
        with suppress(OSError):  # wakes the thread where no one came
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)
        if self._process is None:
            return ""
        try:
            _out, said = self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _out, said = self._process.communicate()
        return _text(said)


def _text(said: bytes) -> str:
    return said.decode(errors="replace").strip() or "ssh said nothing"


def authorized_key(public_key: str, command: str) -> str:
    """Return the line for the other host's authorized_keys. Raises MicrovmError for what could be more than that."""
    if "\n" in public_key or "\n" in command:
        raise MicrovmError("a key and a command are one line each", option="offer")
    quoted = command.replace("\\", "\\\\").replace('"', '\\"')
    return f'command="{quoted}",restrict {public_key}'
