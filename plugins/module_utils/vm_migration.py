# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Handing a VM from one VMM to another, on this host or over a socket to another one.

Facts from Cloud Hypervisor's docs/live_migration.md and vmm/src/lib.rs (vm_send_migration, vm_receive_migration), and from
tests/vmm_contract/test_vmm_migration.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from . import vmm_versions
from .errors import MicrovmError
from .tail import text_of
from .vm_schema import Version, spelled
from .vm_state import Vm
from .vmm_api import VmmClient, VmmError, VmmUnreachable

DEFAULT_TIMEOUT = 600.0
_BEGIN_SECONDS = 20.0
_ARRIVAL_SECONDS = 30.0
_POLL_SECONDS = 0.01
_FAILED = '"migration-failed"'
# The first release that hands over a VM that is paused. Of those before, some refuse, and v43.0 dies of it with its guest.
SENDS_PAUSED: Version = (52, 0)


def begin_receiving(api_socket: Path, migration_socket: Path, alive: Callable[[], bool]) -> None:
    """Have a VMM that answers wait for a VM at ``migration_socket``; return once it waits. It answers nothing else then.

    It goes on waiting when whoever asked has gone. Raises MicrovmError where it does not begin.
    """
    migration_socket.unlink(missing_ok=True)
    refusals: list[MicrovmError] = []

    def ask() -> None:
        try:
            VmmClient(str(api_socket), timeout=_BEGIN_SECONDS).receive_migration(f"unix:{migration_socket}")
        except VmmUnreachable:
            pass  # it is taking longer than we listen
        except MicrovmError as error:
            refusals.append(error)

    threading.Thread(target=ask, daemon=True).start()
    deadline = time.monotonic() + _BEGIN_SECONDS
    while not migration_socket.exists():
        if refusals:
            raise refusals[0]
        if not alive() or time.monotonic() > deadline:
            raise MicrovmError(f"the VMM that is to receive the VM does not wait at '{migration_socket}'")
        time.sleep(_POLL_SECONDS)


def has_vm(api_socket: Path) -> bool:
    """Return whether a VMM says that it has a guest, running or paused. One that still waits says nothing."""
    try:
        return VmmClient(str(api_socket), timeout=1.0).info()["state"] in ("Running", "Paused")
    except (VmmError, VmmUnreachable):
        return False


def send(vm: Vm, url: str, *, local: bool, timeout: float, give_up: Callable[[], None]) -> tuple[bool, str]:
    """Have the VM's VMM hand it over, and wait until that is over. Return whether it has left, and what was said.

    A VMM that has handed its VM over ends, and so does one that dies of it: whether the VM has arrived is to be asked at the
    other end. ``give_up`` is called after ``timeout`` seconds, to take the other end away; the VM then stays.
    """
    pid = vm.supervisor.pid()
    if why := _cannot_send(vm):
        return False, why
    failed_before = _failures(vm)
    refusals: list[str] = []
    answered = threading.Event()

    def ask() -> None:
        # Up to v52 the call returns when the migration is over, from v53 on when it has begun.
        try:
            vm.client(timeout=timeout + _BEGIN_SECONDS).send_migration(url, local=local)
        except VmmError as error:
            refusals.append(error.message)
        except VmmUnreachable:
            pass  # it has ended, one way or the other
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    deadline = time.monotonic() + timeout
    given_up = False
    # Without one it has ended before it was asked.
    while pid is not None and vm.supervisor.pid() == pid:
        if refusals:
            return False, refusals[0]
        if answered.is_set() and _failures(vm) > failed_before:
            return False, f"the VMM reports that the migration has failed; {vm.supervisor.last_words()}"
        if time.monotonic() > deadline:
            if given_up:
                raise MicrovmError(
                    "the VMM neither ends its migration nor itself; look at what it does", vm=vm.paths.name
                )
            given_up, deadline = True, time.monotonic() + _ARRIVAL_SECONDS
            give_up()
        time.sleep(_POLL_SECONDS)
    return True, vm.supervisor.last_words()


def refusal(release: Version, *, paused: bool) -> str:
    """Return why a VMM of a release is not asked for its VM; nothing where it can be."""
    if not paused or release >= SENDS_PAUSED:
        return ""
    return (
        f"a VM that is paused can be handed over from Cloud Hypervisor {spelled(SENDS_PAUSED)} on, and this one runs in "
        f"{spelled(release)}; resume it before"
    )


def _cannot_send(vm: Vm) -> str:
    """Return why the VMM is not asked at all; nothing where it is. One that is not there is for the caller to find."""
    with suppress(VmmError, VmmUnreachable):
        client = vm.client()
        return refusal(vmm_versions.parse(client.ping()["version"]), paused=client.info()["state"] == "Paused")
    return ""


def arrived(api_socket: Path, alive: Callable[[], bool]) -> bool:
    """Return whether the VM whose VMM has ended has come to this one; wait a little for it."""
    deadline = time.monotonic() + _ARRIVAL_SECONDS
    while time.monotonic() < deadline and alive():
        try:
            return VmmClient(str(api_socket), timeout=1.0).info()["state"] in ("Running", "Paused")
        except VmmError:
            return False
        except VmmUnreachable:
            time.sleep(_POLL_SECONDS)
    return False


def _failures(vm: Vm) -> int:
    return text_of(vm.paths.event_log).count(_FAILED)
