# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One VM's life: what is there, what is to be done about it, and doing it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import tap, vm_config, vmm_versions
from .bulk import Outcome
from .errors import MicrovmError
from .files import locked_directory, replacing
from .names import check_vm_name
from .runner import HostRunner, Runner
from .vm_config import Paths, Spec
from .vmm_api import VmmClient, VmmError, VmmUnreachable
from .vmm_process import DetachedProcess, Supervisor, started, wait_for_end

State = Literal["absent", "stopped", "created", "running", "paused"]
Wanted = Literal["present", "running", "paused", "stopped", "restarted", "absent"]
Step = Literal["record", "stop", "clean", "start", "boot", "resume", "pause", "remove"]
_STATES: Mapping[str, State] = {"Created": "created", "Running": "running", "Paused": "paused", "Shutdown": "stopped"}
_API_SECONDS = 20.0
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Current:
    """What is there: the record of what was asked, the VMM's process, and what it says of its VM."""

    record: Mapping[str, Any] | None
    pid: int | None
    state: State
    info: Mapping[str, Any]
    # Files of a VMM that is gone.
    stale: bool


@dataclass(frozen=True, slots=True)
class Vm:
    """The tools for one VM."""

    paths: Paths
    supervisor: Supervisor
    runner: Runner

    @classmethod
    def of(cls, name: str, *, state_dir: Path, run_dir: Path, runner: Runner | None = None) -> Vm:
        """Return the tools for the VM ``name``."""
        paths = Paths.of(name, state_dir=state_dir, run_dir=run_dir)
        supervisor = DetachedProcess(paths.run, api_socket=paths.api_socket, log=paths.vmm_log)
        return cls(paths, supervisor, runner or HostRunner())

    def client(self, timeout: float = 10.0) -> VmmClient:
        """Return a client of the VMM's API."""
        return VmmClient(str(self.paths.api_socket), timeout=timeout)


# ---- Current ----


def current(vm: Vm) -> Current:
    """Read what is there, changing nothing."""
    record = read_record(vm.paths)
    pid = vm.supervisor.pid()
    info: Mapping[str, Any] = {}
    state: State = "absent" if record is None else "stopped"
    if pid is not None:
        try:
            info = vm.client().info()
            state = _STATES[info["state"]]
        except VmmError:
            state = "stopped"  # the VMM lives and has no VM
        except VmmUnreachable:
            # It may just have ended.
            if not wait_for_end(vm.supervisor, 1.0):
                raise
            pid = None
    return Current(record, pid, state, info, stale=pid is None and vm.paths.run.exists())


def read_record(paths: Paths) -> dict[str, Any] | None:
    """Return what was asked, or None where nothing was. Raises MicrovmError for a record that is damaged."""
    try:
        return dict(json.loads(paths.record.read_bytes()))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise MicrovmError(f"'{paths.record}' is not JSON ({error}); remove it and run again") from error


# ---- Plan ----


def plan(wanted: Wanted, now: Current, *, asked_anew: bool) -> list[Step]:
    """Return what is to be done. ``asked_anew``: the options differ from those on record. Pure."""
    alive = now.pid is not None
    if wanted == "absent":
        steps: list[Step] = ["stop"] if alive else []
        return [*steps, "remove"] if now.record is not None or now.stale or alive else steps
    steps = ["record"] if asked_anew else []
    if wanted == "present":
        return steps
    if wanted == "stopped":
        return [*steps, "stop"] if alive else [*steps, "clean"] if now.stale else steps
    usable = now.state in ("running", "paused", "created")
    if wanted == "restarted" or not usable:
        steps += ["stop"] if alive else ["clean"] if now.stale else []
        steps += ["start", "boot"]
        return [*steps, "pause"] if wanted == "paused" else steps
    if now.state == "created":
        steps.append("boot")
    if wanted == "running" and now.state == "paused":
        steps.append("resume")
    if wanted == "paused" and now.state != "paused":
        steps.append("pause")
    return steps


def restart_reasons(now: Current, spec: Spec, files: Mapping[str, Any]) -> list[str]:
    """Return why a living VM is not what is asked for, by option; nothing where it is, or is not living. Pure.

    ``files`` identifies the files that are there now under the names of ``Spec.files``.
    """
    if now.pid is None or now.record is None or not now.record.get("booted"):
        return []
    booted = now.record["booted"]
    names = sorted(booted["config"].keys() | spec.config.keys())
    changed = [name for name in names if booted["config"].get(name) != spec.config.get(name)]
    replaced = [name for name, identity in files.items() if booted["files"].get(name, identity) != identity]
    return [*changed, *(f"{name} was replaced" for name in replaced if name.partition(".")[0] not in changed)]


# ---- Apply ----


def ensure(
    item: Mapping[str, Any], *, state_dir: Path, run_dir: Path, runner: Runner, check_mode: bool = False
) -> Outcome:
    """Bring one VM to the state that its options ask for. Raises MicrovmError, and undoes a start that failed."""
    name = check_vm_name(item["name"])
    vm = Vm.of(name, state_dir=state_dir, run_dir=run_dir, runner=runner)
    wanted: Wanted = item.get("state") or "running"
    with locked_directory(vm.paths.state, make=wanted != "absent" and not check_mode, mode=0o700):
        now = current(vm)
        spec = _asked(item, vm.paths, now, wanted)
        asked_anew = spec is not None and (now.record is None or _differs(now.record, item, spec))
        steps = plan(wanted, now, asked_anew=asked_anew)
        reasons: list[str] = []
        if spec is not None:
            vmm_versions.adapted(spec.config, vmm_versions.installed(runner, spec.vmm))
            identities = _identities(spec, check_mode=check_mode)
            if "start" not in steps:
                reasons = restart_reasons(now, spec, identities)
                if reasons and item.get("apply") == "restart" and wanted in ("running", "paused"):
                    steps = plan("restarted", now, asked_anew=asked_anew)
                    steps += ["pause"] if wanted == "paused" else []
                    reasons = []
            steps += _tap_steps(vm, spec, steps)
        before = now.state
        stopped_by = None
        if not check_mode:
            stopped_by = _apply(vm, steps, item, spec, now)
            now = current(vm)
            after: str = now.state
        else:
            after = _expected(wanted, before)
    facts = {} if after == "absent" else {**describe(vm, now), "state": after}
    facts |= {"state": after, "stopped_by": stopped_by, "restart_required": bool(reasons), "restart_reasons": reasons}
    return Outcome(
        changed=bool(steps),
        facts=facts,
        before={"state": before, **_shown(now.record if check_mode else None)},
        after={"state": after, **({"config": spec.config} if spec is not None and asked_anew else {})},
        actions=tuple("recorded what is asked" if step == "record" else step for step in steps),
    )


def _shown(record: Mapping[str, Any] | None) -> dict[str, Any]:
    return {} if record is None else {"config": record.get("config", {})}


def _expected(wanted: Wanted, before: State) -> State:
    match wanted:
        case "restarted" | "running":
            return "running"
        case "present":
            return "stopped" if before == "absent" else before
        case other:
            return other


def _asked(item: Mapping[str, Any], paths: Paths, now: Current, wanted: Wanted) -> Spec | None:
    """Return what is asked for now: by the options, or where they name no payload, by the record.

    So a VM that is known can be stopped and started again by its name alone.
    """
    if item.get("payload") is not None:
        return vm_config.parse(item, paths) if wanted != "absent" else None
    if wanted in ("absent", "stopped"):
        return None
    if now.record is None:
        raise MicrovmError("is missing, and no VM of this name is known on the host", option="payload", vm=paths.name)
    return vm_config.parse(now.record["options"], paths)


def _options(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("state", "apply", "grace") and value is not None}


def _differs(record: Mapping[str, Any], item: Mapping[str, Any], spec: Spec) -> bool:
    asked = _options(item) if item.get("payload") is not None else record["options"]
    # Through JSON, in which tuples are lists and keys are strings.
    return bool(json.loads(json.dumps(asked)) != record["options"] or record["config"] != spec.config)


def _identities(spec: Spec, *, check_mode: bool) -> dict[str, list[int]]:
    """Return what tells each file from one that takes its name later. Raises MicrovmError for a file that is missing.

    In check mode a file may be one that a run would have made.
    """
    identities = {}
    for option, path in spec.files().items():
        try:
            status = Path(path).stat()
        except FileNotFoundError as error:
            if check_mode:
                continue
            raise MicrovmError(f"'{path}' is not there", option=option) from error
        identities[option] = [status.st_dev, status.st_ino]
    return identities


def _tap_steps(vm: Vm, spec: Spec, steps: list[Step]) -> list[Any]:
    """Return what a living VM's TAPs lack; those of one that is started anew are made on the way."""
    if "start" in steps or vm.supervisor.pid() is None:
        return []
    return [step for wanted in spec.taps for step in tap.missing(vm.runner, wanted)]


def _apply(vm: Vm, steps: list[Any], item: Mapping[str, Any], spec: Spec | None, now: Current) -> str | None:
    """Do the steps in order; return what stopped the VM, if one of them did."""
    stopped_by = None
    grace = item.get("grace")
    for step in steps:
        if step == "stop":
            stopped_by = stop(vm, grace=vm_config.DEFAULT_GRACE if grace is None else grace)
            _clean(vm)
        elif step == "clean":
            _clean(vm)
        elif step == "remove":
            _remove(vm, now)
        elif step in ("pause", "resume"):
            vm.client().act(step)
        elif spec is not None:
            _apply_spec(vm, step, item, spec, now)
    return stopped_by


def _apply_spec(vm: Vm, step: Any, item: Mapping[str, Any], spec: Spec, now: Current) -> None:
    if step == "record":
        booted = {} if now.record is None else {"booted": now.record.get("booted")}
        options = _options(item) if item.get("payload") is not None or now.record is None else now.record["options"]
        _write_record(vm.paths, {"options": options, "config": spec.config, **booted})
    elif step == "start":
        _start(vm, spec)
    elif step == "boot":
        _boot(vm, spec)
    else:  # what a TAP of a living VM lacks
        for wanted in spec.taps:
            tap.ensure(vm.runner, wanted)


def _write_record(paths: Paths, record: Mapping[str, Any]) -> None:
    with replacing(paths.record) as file:
        file.write(json.dumps(record, indent=1, sort_keys=True).encode())


def _start(vm: Vm, spec: Spec) -> None:
    """Make the TAPs, start the VMM and create the VM. What was made is gone where this fails."""
    binary = shutil.which(spec.vmm)
    if binary is None:
        raise MicrovmError(f"'{spec.vmm}' is not there, or cannot be run", option="vmm")
    config = vmm_versions.adapted(spec.config, vmm_versions.installed(vm.runner, spec.vmm))
    made: list[str] = []
    try:
        for wanted in spec.taps:
            tap.missing(vm.runner, wanted)
            if tap.ensure(vm.runner, wanted):
                made.append(wanted.name)
        vm.paths.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        argv = [binary, "--api-socket", f"path={vm.paths.api_socket}", "--event-monitor", f"path={vm.paths.event_log}"]
        vm.supervisor.start(argv)
        _wait_for_api(vm)
        vm.client().create(config)
    except BaseException as error:
        _undo_start(vm, made)
        if isinstance(error, MicrovmError):
            error.message = f"the VM was not started, and what was made for it is gone again: {error.message}"
        raise


def _boot(vm: Vm, spec: Spec) -> None:
    """Boot the VM and wait until it holds its TAPs. It is gone where this fails."""
    try:
        vm.client(timeout=max(30.0, spec.boot_timeout)).act("boot")
        deadline = time.monotonic() + spec.boot_timeout
        for wanted in spec.taps:
            while not tap.has_carrier(wanted.name):
                if vm.supervisor.pid() is None:
                    raise MicrovmError(f"the VMM ended right after the boot; {_last_words(vm)}")
                if time.monotonic() > deadline:
                    raise MicrovmError(
                        f"the VMM did not take the TAP {wanted.name} within {spec.boot_timeout:g} seconds",
                        option="nets.tap",
                    )
                time.sleep(_POLL_SECONDS)
    except BaseException as error:
        words = _last_words(vm)
        _undo_start(vm, [wanted.name for wanted in spec.taps])
        if isinstance(error, MicrovmError):
            error.message = f"the VM did not boot, and what was made for it is gone again: {error.message}; {words}"
        raise
    record = read_record(vm.paths) or {}
    booted = {"config": spec.config, "files": _identities(spec, check_mode=False)}
    _write_record(vm.paths, {**record, "booted": booted})


def _undo_start(vm: Vm, taps: list[str]) -> None:
    vm.supervisor.signal(signal.SIGKILL)
    wait_for_end(vm.supervisor, _STOP_SECONDS)
    _clean(vm)
    for name in taps:
        tap.remove(vm.runner, name)


def _wait_for_api(vm: Vm) -> None:
    deadline = time.monotonic() + _API_SECONDS
    while True:
        try:
            vm.client(timeout=2.0).ping()
            return
        except VmmUnreachable as error:
            if vm.supervisor.pid() is None:
                raise MicrovmError(f"the VMM ended before its API answered; {_last_words(vm)}", option="vmm") from error
            if time.monotonic() > deadline:
                raise MicrovmError(
                    f"the VMM's API did not answer within {_API_SECONDS:g} seconds; {_last_words(vm)}", option="vmm"
                ) from error
        time.sleep(_POLL_SECONDS)


def _last_words(vm: Vm) -> str:
    with suppress(FileNotFoundError):
        lines = vm.paths.vmm_log.read_text(errors="replace").strip().splitlines()
        if lines:
            return f"it said: {' / '.join(lines[-5:])}"
    return "it said nothing"


def stop(vm: Vm, *, grace: float) -> str | None:
    """Stop the VM and its VMM; return what did it, None where nothing ran.

    The guest is asked with the power button and has ``grace`` seconds. Then the VM is shut down, then the VMM, and the
    process gets TERM and KILL, each where what came before did not end it within 5 seconds.
    """
    if vm.supervisor.pid() is None:
        return None
    client = vm.client(timeout=_STOP_SECONDS)
    if grace > 0 and _press_power_button(client) and wait_for_end(vm.supervisor, grace):
        return "power_button"
    shut_down = _accepted(lambda: client.act("shutdown"))
    if _accepted(client.vmm_shutdown) and wait_for_end(vm.supervisor, _STOP_SECONDS):
        return "vm_shutdown" if shut_down else "vmm_shutdown"
    for number in (signal.SIGTERM, signal.SIGKILL):
        vm.supervisor.signal(number)
        if wait_for_end(vm.supervisor, _STOP_SECONDS):
            return "term" if number == signal.SIGTERM else "kill"
    raise MicrovmError(f"the VMM's process {vm.supervisor.pid()} outlives even SIGKILL; look at what the kernel says")


def _press_power_button(client: VmmClient) -> bool:
    with suppress(MicrovmError):
        if client.info()["state"] == "Paused":
            client.act("resume")
        client.act("power-button")
        return True
    return False


def _accepted(call: Callable[[], None]) -> bool:
    with suppress(VmmError, VmmUnreachable):
        call()
        return True
    return False


def _clean(vm: Vm) -> None:
    """Remove what a VMM that ended has left in its run directory."""
    vm.supervisor.forget()
    shutil.rmtree(vm.paths.run, ignore_errors=True)


def _remove(vm: Vm, now: Current) -> None:
    """Remove the TAPs on record, and what ch_vm has written. Disks are not its own: they stay."""
    _clean(vm)
    for net in (now.record or {}).get("config", {}).get("net", ()):
        tap.remove(vm.runner, net["tap"])
    vm.paths.serial_log.unlink(missing_ok=True)
    vm.paths.record.unlink(missing_ok=True)
    with suppress(OSError):  # there are disks
        vm.paths.state.rmdir()


# ---- Report ----


def describe(vm: Vm, now: Current) -> dict[str, Any]:
    """Return what is told of a VM that is known."""
    record = now.record or {}
    config = now.info.get("config") or record.get("config") or {}
    version = None
    if now.pid is not None:
        with suppress(MicrovmError):
            version = vm.client().ping()["version"]
    alive = now.pid is not None
    return {
        "state": now.state,
        "pid": now.pid,
        "vmm_version": version,
        "api_socket": str(vm.paths.api_socket) if alive else None,
        "vsock_socket": str(vm.paths.vsock_socket) if alive and "vsock" in config else None,
        "serial_socket": str(vm.paths.serial_socket) if alive and config["serial"]["mode"] == "Socket" else None,
        "event_log": str(vm.paths.event_log) if alive else None,
        "pty": _console_file(config, "serial", "Pty") if alive else None,
        "console_pty": _console_file(config, "console", "Pty") if alive else None,
        "serial_log": _console_file(config, "serial", "File"),
        "taps": [net["tap"] for net in config.get("net") or ()],
        "labels": record.get("options", {}).get("labels") or {},
    }


def _console_file(config: Mapping[str, Any], console: str, mode: str) -> str | None:
    settings = config.get(console) or {}
    return settings.get("file") if settings.get("mode") == mode else None


def known(state_dir: Path) -> list[str]:
    """Return the names of the VMs on record."""
    return sorted(path.parent.name for path in (state_dir / "vms").glob("*/vm.json"))


def gather(item: Mapping[str, Any], *, state_dir: Path, run_dir: Path, runner: Runner) -> Outcome:
    """Return what is told of one VM, changing nothing. Raises MicrovmError where its VMM does not answer."""
    vm = Vm.of(check_vm_name(item["name"]), state_dir=state_dir, run_dir=run_dir, runner=runner)
    now = current(vm)
    if now.state == "absent":
        return Outcome(changed=False, facts={"state": "absent"})
    counters: Mapping[str, Any] = {}
    if now.state in ("running", "paused"):
        with suppress(MicrovmError):
            counters = vm.client().counters()
    facts = {
        **describe(vm, now),
        "vmm_died": now.stale,
        "uptime": _uptime(now.pid),
        "config": now.info.get("config") or (now.record or {}).get("config"),
        "counters": dict(counters),
    }
    return Outcome(changed=False, facts=facts)


def _uptime(pid: int | None) -> int | None:
    """Return for how many whole seconds a process has run."""
    ticks = None if pid is None else started(pid)
    if ticks is None:
        return None
    since_boot = float(Path("/proc/uptime").read_text().split()[0])
    return int(since_boot - ticks / os.sysconf("SC_CLK_TCK"))
