# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The VMM's process, behind one interface. Here: a detached process of our own. systemd_unit.py has the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

from .errors import MicrovmError
from .files import is_own, write_json
from .tail import quoted

_POLL_SECONDS = 0.02
_PID_FILE = "vmm.pid"
# setpriv(1) ends by execve(2), so that the process is the VMM's.
_WITHOUT_CAPABILITIES = ("setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--")


# With these it writes a stack trace into its errors, for which it needs a system call that its seccomp filter has not: it dies
# of an error that is none, such as a migration that fails, and its guest with it (tried on v43.0 and v53.0).
_TRACES = ("RUST_BACKTRACE", "RUST_LIB_BACKTRACE")


class Supervisor(Protocol):
    """What runs one VM's VMM and knows whether it lives.

    ``unprivileged``: the VMM runs as a user of its own.
    """

    @property
    def kind(self) -> Literal["systemd", "process"]:
        """Return which of them it is."""

    @property
    def unprivileged(self) -> bool:
        """Return whether the VMM runs as a user of its own."""

    def enabled(self) -> bool | None:
        """Return whether the VM comes back with the host; None where that is not known."""

    def gave_up(self) -> bool:
        """Return whether it has started the VMM again as often as it may."""

    def settle(self) -> None:
        """Wait for what is going on without us, such as a start with the host or after a crash."""

    def pid(self) -> int | None:
        """Return the process id of the living VMM, or None."""

    def start(self, argv: Sequence[str]) -> int:
        """Start the VMM and return its process id. Raises MicrovmError."""

    def stop(self, grace: float, ask: Callable[[float], str | None]) -> str | None:
        """Have ``ask`` called, which asks the VMM to end and the guest before it; return what did it, see vm_stop."""

    def signal(self, number: signal.Signals) -> None:
        """Send the living VMM a signal; nothing where there is none."""

    def forget(self) -> None:
        """Drop what is remembered of a VMM that ended."""

    def last_words(self) -> str:
        """Return the end of what the VMM has printed, for an error."""


class DetachedProcess:
    """A VMM in a session of its own, known again by what ``vmm.pid`` in its run directory says of it.

    A process id alone is no identity: another process has it one day. The time when the process was started and the
    boot that it was started in make it one, and the command line must name this VM's socket. A signal goes through a
    descriptor that was opened before the identity was verified, so that it reaches that process or none (pidfd_open(2)).
    """

    kind: Literal["process"] = "process"
    unprivileged = False

    def __init__(self, run_directory: Path, *, api_socket: Path, log: Path, pid_file: str = _PID_FILE) -> None:
        self._file = run_directory / pid_file
        self._api_socket = api_socket
        self._log = log

    def pid(self) -> int | None:
        """See Supervisor.pid. A zombie is dead. What another user, such as that of a unit's VMM, could write is not believed."""
        if not is_own(self._file.parent):
            return None
        try:
            remembered = json.loads(self._file.read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        pid = int(remembered["pid"])
        alive = (
            remembered["boot_id"] == boot_id()
            and remembered["started"] == started(pid)
            and names(pid, self._api_socket)
        )
        return pid if alive else None

    def start(self, argv: Sequence[str]) -> int:
        """See Supervisor.start. What the VMM prints goes to its log. Raises MicrovmError where it cannot be run.

        Root's VMM keeps root's user id, with which it opens root's files, and no capability.
        """
        with self._log.open("wb") as log:
            try:
                process = subprocess.Popen(
                    [*(_WITHOUT_CAPABILITIES if os.geteuid() == 0 else ()), *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    umask=0o077,
                    cwd="/",
                    env={name: value for name, value in os.environ.items() if name not in _TRACES},
                )
            except OSError as error:
                raise MicrovmError(f"'{argv[0]}' cannot be run: {error.strerror}", option="vmm") from error
        write_json(self._file, {"pid": process.pid, "started": started(process.pid), "boot_id": boot_id()})
        return process.pid

    def become(self) -> bool:
        """Be the VM's VMM from now on, in the place of the process that was remembered as it."""
        self._file.replace(self._file.with_name(_PID_FILE))
        return True

    def enabled(self) -> bool | None:
        """See Supervisor.enabled."""
        return None

    def gave_up(self) -> bool:
        """See Supervisor.gave_up. It does so never."""
        return False

    def settle(self) -> None:
        """See Supervisor.settle. Nothing goes on without us."""

    def stop(self, grace: float, ask: Callable[[float], str | None]) -> str | None:
        """See Supervisor.stop."""
        return ask(grace)

    def signal(self, number: signal.Signals) -> None:
        """See Supervisor.signal."""
        pid = self.pid()
        if pid is None:
            return
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                if self.pid() == pid:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    def forget(self) -> None:
        """See Supervisor.forget."""
        self._file.unlink(missing_ok=True)

    def last_words(self) -> str:
        """See Supervisor.last_words."""
        printed = ""
        with suppress(FileNotFoundError):
            printed = self._log.read_text(errors="replace")
        return quoted(printed)


class MainProcess:
    """The VMM seen from within its unit, by the process id that systemd tells the unit's other commands; 0 for none."""

    kind: Literal["systemd"] = "systemd"
    unprivileged = True

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._started = started(pid) if pid else None

    def pid(self) -> int | None:
        """See Supervisor.pid."""
        return self._pid if self._started is not None and started(self._pid) == self._started else None

    def enabled(self) -> bool | None:
        """See Supervisor.enabled."""
        return None

    def gave_up(self) -> bool:
        """See Supervisor.gave_up. It does so never."""
        return False

    def settle(self) -> None:
        """See Supervisor.settle."""

    def start(self, argv: Sequence[str]) -> int:
        """See Supervisor.start. systemd has started it."""
        raise MicrovmError(f"'{argv[0]}' is started by its unit")

    def stop(self, grace: float, ask: Callable[[float], str | None]) -> str | None:
        """See Supervisor.stop."""
        return ask(grace)

    def signal(self, number: signal.Signals) -> None:
        """See Supervisor.signal."""
        if self.pid() is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def forget(self) -> None:
        """See Supervisor.forget."""

    def last_words(self) -> str:
        """See Supervisor.last_words. They are in the journal, beside this error."""
        return "the journal has what it said"


def boot_id() -> str:
    """Return what tells this boot of the host from any other: random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def started(pid: int) -> int | None:
    """Return when a living process was started, in clock ticks since the boot: field 22 of proc_pid_stat(5)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name, field 2, is in parentheses and may hold anything.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def names(pid: int, api_socket: Path) -> bool:
    """Return whether a process's command line names the socket. It is empty for a moment while execve(2) replaces it."""
    try:
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return not command_line or os.fsencode(api_socket) in command_line


def wait_for_end(supervisor: Supervisor, seconds: float) -> bool:
    """Return whether the VMM has ended, or ends within so many seconds."""
    deadline = time.monotonic() + seconds
    while supervisor.pid() is not None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
