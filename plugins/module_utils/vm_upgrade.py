# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bringing a VM that runs to the VMM that is installed now, without a reboot of its guest: a migration on one host."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import (
    handover,
    log_rotation,
    ready_record,
    tap,
    vm_config,
    vm_migration,
    vm_prepare,
    vm_record,
    vm_restart,
    vm_start,
    vmm_versions,
)
from .bulk import Outcome
from .errors import MicrovmError
from .files import is_own, locked_directory
from .handover import Journal
from .names import check_vm_name
from .runner import Runner
from .vm_config import Spec
from .vm_migration import Place
from .vm_schema import Version, spelled
from .vm_state import Current, Vm, current
from .vmm_process import DetachedProcess, wait_for_end

_END_SECONDS = 10.0


def ensure(
    item: Mapping[str, Any], *, state_dir: Path, run_dir: Path, runner: Runner, check_mode: bool = False
) -> Outcome:
    """Have one VM run in the VMM that is installed. Raises MicrovmError; the guest then runs on as it did.

    Where the VMM dies of it the guest is lost: it is started again from its disks, and MicrovmError says so.
    """
    vm = Vm.of(check_vm_name(item["name"]), state_dir=state_dir, run_dir=run_dir, runner=runner)
    with locked_directory(vm.paths.state, make=False):
        cleared = [] if check_mode else recover(vm)
        now = current(vm)
        if now.record is None:
            raise MicrovmError("no VM of this name is known on the host", option="name")
        options = {**now.record["options"], **({"vmm": item["vmm"]} if item.get("vmm") else {})}
        spec = vm_config.parse(options, vm.paths)
        wanted = vmm_versions.installed(runner, spec.vmm)
        if now.pid is None:
            return Outcome(changed=bool(cleared), facts=_facts(None, wanted, None), actions=tuple(cleared))
        running = vmm_versions.parse(vm.client().ping()["version"])
        if running == wanted and not item.get("force"):
            return Outcome(changed=bool(cleared), facts=_facts(running, wanted, now.pid), actions=tuple(cleared))
        _refuse(vm, now, running, wanted)
        if not check_mode:
            ready = ready_record.seen(vm.paths, ready_record.boot(vm.paths, now.pid))
            timeout = item.get("timeout") or vm_migration.DEFAULT_TIMEOUT
            _upgrade(vm, now, spec, timeout=timeout)
            vm_record.write(vm.paths, {**now.record, "options": options})
            now = current(vm)
            ready_record.carry(vm.paths, now.pid, ready)
    said = f"moved the guest from {spelled(running)} to {spelled(wanted)}"
    return Outcome(
        changed=True,
        facts=_facts(running, wanted, now.pid),
        before={"vmm_version": "{}.{}".format(*running)},
        after={"vmm_version": "{}.{}".format(*wanted)},
        actions=(*cleared, said),
    )


def _facts(running: Version | None, wanted: Version, pid: int | None) -> dict[str, Any]:
    return {
        "vmm_version_before": None if running is None else "{}.{}".format(*running),
        "vmm_version": "{}.{}".format(*wanted),
        "pid": pid,
    }


def _refuse(vm: Vm, now: Current, running: Version, wanted: Version) -> None:
    if now.state not in ("running", "paused"):
        raise MicrovmError(f"the VM is {now.state}: only a guest that runs or is paused can be moved", option="name")
    if wanted < running:
        raise MicrovmError(
            f"runs in {spelled(running)}, and {spelled(wanted)} is asked for: a VMM takes over from its own "
            "version or an older one; stop the VM and start it to go back",
            option="vmm",
        )
    if not isinstance(vm.supervisor, DetachedProcess):
        raise MicrovmError(
            "the VMM is the main process of a unit, in whose sandbox no second one can be started; restart the VM with "
            "ch_vm state=restarted, or move it to another host and back",
            option="name",
        )


# ---- The second VMM ----


def _next(vm: Vm, journal: Journal) -> DetachedProcess:
    return DetachedProcess(vm.paths.run, api_socket=Path(journal.next), log=_next_log(vm), pid_file="vmm.next.pid")


def _next_log(vm: Vm) -> Path:
    return vm.paths.vmm_log.with_name("vmm.next.log")


def _next_events(vm: Vm) -> Path:
    return vm.paths.event_log.with_name("events.next.json")


def _journal(vm: Vm) -> Path:
    return vm.paths.run / "upgrade.json"


def _upgrade(vm: Vm, now: Current, spec: Spec, *, timeout: float) -> None:
    config = now.info["config"]
    sockets = [vm.paths.vsock_socket, vm.paths.serial_socket]
    files = list(sockets)
    if config["serial"].get("file") == str(vm.paths.serial_log):
        log_rotation.rotate(vm.paths.serial_log, size=1)
        files.append(vm.paths.serial_log)
    taps = tuple(wanted for wanted in spec.taps if tap.has_carrier(wanted.name))
    journal = handover.plan(taps, files, vm.paths.api_socket)
    journal.write(_journal(vm))
    next_ = _next(vm, journal)
    try:
        argv = [vm_prepare.binary(spec), "--api-socket", f"path={journal.next}"]
        next_.start([*argv, "--event-monitor", f"path={_next_events(vm)}"])
        vm_start.wait_for_api(Path(journal.next), next_, who="the VMM that is to receive the VM")
        vm_migration.begin_receiving(Path(journal.next), vm.paths.migration_socket, lambda: next_.pid() is not None)
        handover.make_room(vm.runner, journal, taps)
        with handover.sockets_kept(sockets):
            left, why = vm_migration.send(
                vm,
                f"unix:{vm.paths.migration_socket}",
                # Memory that is shared is handed over, other memory copied.
                local=bool(config["memory"].get("shared") or config["memory"].get("hugepages")),
                timeout=timeout,
                give_up=lambda: next_.signal(signal.SIGKILL),
            )
    except BaseException:
        _settle(vm, journal, spec)
        raise
    if _settle(vm, journal, spec) == "there":
        return
    if left:
        vm_restart.restart_lost(vm, f"the VMM died as it handed its VM over, and with it the guest ({why})", spec)
    raise MicrovmError(f"the guest runs on in the VMM that it was in: {why}")


def recover(vm: Vm) -> list[str]:
    """Finish or undo what a run that was killed has begun; return what was done, in words.

    A unit's VMM, which is never moved so, could write the journal itself, and have root rename and remove what it likes.
    """
    journal = Journal.read(_journal(vm)) if is_own(vm.paths.run) else None
    if journal is None:
        return []
    spec = vm_config.parse((vm_record.read(vm.paths) or {})["options"], vm.paths)
    place = _settle(vm, journal, spec)
    words = {
        "there": "finished the guest's move to another VMM, which a run that did not end had begun",
        "here": "undid a move to another VMM, which a run that did not end had begun",
        "lost": "cleaned up after a move to another VMM, which neither VMM has survived",
    }
    return [words[place]]


def _settle(vm: Vm, journal: Journal, spec: Spec) -> Place:
    """Find out where the guest is, and have it be there alone, under the names that others know."""
    next_ = _next(vm, journal)
    api_socket = Path(journal.next)
    if vm.supervisor.pid() is None and not api_socket.exists():
        api_socket = vm.paths.api_socket  # a run that was killed has given it its name already
    there = next_.pid() is not None and vm_migration.has_vm(api_socket)
    if vm.supervisor.pid() is None:
        there = there or vm_migration.arrived(api_socket, lambda: next_.pid() is not None)
    elif there and not wait_for_end(vm.supervisor, _END_SECONDS):
        # Its guest has gone on elsewhere, so that it must not.
        vm.supervisor.signal(signal.SIGKILL)
        wait_for_end(vm.supervisor, _END_SECONDS)
    if there:
        handover.finish(vm.runner, journal)
        api_socket.rename(vm.paths.api_socket)
        for path, name in ((_next_events(vm), vm.paths.event_log), (_next_log(vm), vm.paths.vmm_log)):
            if path.exists():
                path.replace(name)
        next_.become(vm.paths.run / "vmm.pid")
        place: Place = "there"
    else:
        next_.signal(signal.SIGKILL)
        wait_for_end(next_, _END_SECONDS)
        handover.undo(vm.runner, journal, spec.taps)
        next_.forget()
        for path in (Path(journal.next), _next_events(vm), _next_log(vm)):
            path.unlink(missing_ok=True)
        place = "lost" if vm.supervisor.pid() is None else "here"
    vm.paths.migration_socket.unlink(missing_ok=True)
    _journal(vm).unlink()
    return place
