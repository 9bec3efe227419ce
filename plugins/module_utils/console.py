# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A person's terminal on a guest's serial port or console.

The line is asked for anew each time: a VMM that is started again, and a guest that boots again, has another pty (tests/vmm_contract).
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from . import vm_record
from .errors import MicrovmError
from .guest_output import attach, own_file
from .relay import relay, write_all
from .tail import Tail
from .vm_state import Vm

Which = Literal["serial", "console"]
DEFAULT_ESCAPE = "^]"
_INTERRUPT = b"\x03"
_POLL_SECONDS = 0.2
_TOLD_BYTES = 8192


def escape_byte(text: str) -> bytes | None:
    """Read an escape key such as ``^]``; ``none`` is none. Raises MicrovmError for what no key with Ctrl sends."""
    if text == "none":
        return None
    if len(text) == 2 and text[0] == "^" and 0x40 <= ord(text[1].upper()) <= 0x5F:
        return bytes([ord(text[1].upper()) & 0x1F])
    raise MicrovmError(f"{text!r} is no key; give one such as '^]', or 'none'", option="escape")


def config_of(vm: Vm, which: Which) -> Mapping[str, Any]:
    """Return where the port of a VM that runs leads. Raises MicrovmError where no VMM answers."""
    found = vm.client(timeout=5.0).info()["config"].get(which) or {}
    return dict(found)


@contextmanager
def line(vm: Vm, which: Which) -> Iterator[int]:
    """Attach to the port, alone: another who attached would take half of what the guest writes, or all.

    Raises MicrovmError where somebody is attached, or it leads where nobody can attach; OSError where the VMM is just gone.
    """
    lock = os.open(vm.paths.run / f"{which}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MicrovmError(f"somebody is attached to its {which} already") from error
        descriptor = attach(config_of(vm, which), vm.paths)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    finally:
        os.close(lock)


def pipe(vm: Vm, which: Which, source: int, sink: int) -> None:
    """Connect ``source`` and ``sink`` to the port, for a program: no key is special, and all ends with the line or the source."""
    with line(vm, which) as descriptor:
        relay(descriptor, source, sink)


@contextmanager
def raw_terminal(descriptor: int) -> Iterator[None]:
    """Have a terminal pass on each key, and be as it was afterwards, also where a signal ends the program."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handlers = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def attend(vm: Vm, which: Which, *, escape: bytes | None, source: int = 0, sink: int = 1) -> None:
    """Connect a person's terminal to the port until the escape key, or until the VM is no longer known.

    A file is shown as it grows, and Ctrl-C leaves it too. Where the VM ends, its next start is waited for. Raises MicrovmError
    where it cannot be attached to at the beginning.
    """

    def tell(text: str) -> None:
        write_all(sink, f"\r\n[microvm: {text}]\r\n".encode())

    where = (
        f"the {which} of '{vm.paths.name}'; {_name(escape)} leaves" if escape else f"the {which} of '{vm.paths.name}'"
    )
    with raw_terminal(source):
        first = True
        while True:
            try:
                config = config_of(vm, which)
                if config.get("mode") == "File":
                    tell(f"reading {where}")
                    left = _show(vm, own_file(config, vm.paths), which, source, sink, escape)
                else:
                    with line(vm, which) as descriptor, _window(source, descriptor):
                        tell(f"attached to {where}")
                        left = relay(descriptor, source, sink, keep=_until(escape)) != "line"
            except (MicrovmError, OSError):
                if first:
                    raise
            else:
                if left:
                    return
                tell(f"the line ended; waiting for '{vm.paths.name}'")
            first = False
            if vm_record.read(vm.paths) is None:
                tell(f"'{vm.paths.name}' is gone")
                return
            if _pressed(source, _POLL_SECONDS, _until(escape)):
                return


def _name(escape: bytes) -> str:
    return f"Ctrl-{chr(escape[0] | 0x40)}"


def _until(escape: bytes | None, *others: bytes) -> Callable[[bytes], tuple[bytes, bool]]:
    keys = [key for key in (escape, *others) if key]

    def keep(data: bytes) -> tuple[bytes, bool]:
        ends = [data.index(key) for key in keys if key in data]
        return (data[: min(ends)], True) if ends else (data, False)

    return keep


def _pressed(source: int, seconds: float, keep: Callable[[bytes], tuple[bytes, bool]]) -> bool:
    """Wait for a key, and for no longer than that; return whether it is one to leave with, or no more can come."""
    if not select.select([source], [], [], seconds)[0]:
        return False
    data = os.read(source, 4096)
    return not data or keep(data)[1]


def _show(vm: Vm, path: Path, which: Which, source: int, sink: int, escape: bytes | None) -> bool:
    """Show a file as it grows; return whether the person left, else the VM has ended or has another file."""
    keep = _until(escape, _INTERRUPT)
    tail = Tail(path)
    try:
        write_all(sink, _lines(tail.new()[-_TOLD_BYTES:]))
        asked = time.monotonic()
        while not _pressed(source, _POLL_SECONDS, keep):
            write_all(sink, _lines(tail.new()))
            if time.monotonic() - asked > 2:
                asked = time.monotonic()
                if vm.supervisor.pid() is None:
                    return False
        return True
    finally:
        tail.close()


def _lines(data: bytes) -> bytes:
    """Return text for a raw terminal, in which a line break alone does not go back to the left."""
    return re.sub(rb"(?<!\r)\n", b"\r\n", data)


@contextmanager
def _window(source: int, descriptor: int) -> Iterator[None]:
    """Give a pty the size of the person's window, and each new one.

    The VMM passes the size of the virtio console's pty on to the guest (vmm/src/sigwinch_listener.rs); a serial port has none.
    """

    def pass_on(_number: int = 0, _frame: FrameType | None = None) -> None:
        with suppress(OSError):
            fcntl.ioctl(descriptor, termios.TIOCSWINSZ, fcntl.ioctl(source, termios.TIOCGWINSZ, bytes(8)))

    if not (os.isatty(source) and os.isatty(descriptor)):
        yield
        return
    pass_on()
    before = signal.signal(signal.SIGWINCH, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
