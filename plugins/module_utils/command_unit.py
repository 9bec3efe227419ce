# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The subcommands that a VM's unit calls around its VMM, so that a VM starts and stops without Ansible.

A VMM that ch_vm has started is held: ch_vm creates and boots the VM itself, and so can say what was wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace

from . import unit_handover, vm_config, vm_life, vm_moving, vm_prepare, vm_record, vm_start, vm_stop
from .command import Command, name_argument
from .errors import MicrovmError
from .handover import Journal
from .names import check_vm_name
from .runner import HostRunner
from .systemd_unit import DEFAULT_UNIT, SystemdUnit
from .unit_cgroup import oom_kills
from .vm_config import Spec
from .vm_life import Life
from .vm_paths import Paths
from .vm_state import Vm
from .vmm_process import MainProcess

# The exit status by which systemd knows a guest as lost where it takes the end of a VMM for a good one, as it does while one
# hands its VM over: systemd_dropin.render_handover has its own list for that.
LOST = 9


def _vm(arguments: argparse.Namespace) -> Vm:
    paths = Paths.of(check_vm_name(arguments.name), state_dir=arguments.state_dir, run_dir=arguments.run_dir)
    # systemd.exec(5), MAINPID: what ExecStartPost= and ExecStop= are told, as long as it lives.
    return Vm(paths, MainProcess(int(os.environ.get("MAINPID") or 0)), HostRunner())


def _spec(vm: Vm) -> Spec:
    record = vm_record.read(vm.paths)
    if record is None:
        raise MicrovmError(f"no VM of this name is on record: '{vm.paths.record}' is not there", vm=vm.paths.name)
    spec = vm_config.parse(record["options"], vm.paths)
    # What is on record counts, where this program's release would make something else of the options.
    return replace(spec, config=record["config"])


def _held(vm: Vm) -> bool:
    life = vm_life.read(vm.paths)
    return life is not None and life.phase == "starting" and life.held and life.of_this_boot


def prepare(arguments: argparse.Namespace) -> int:
    """Make what the VM needs on the host."""
    vm = _vm(arguments)
    if _held(vm):
        return 0
    vm_life.write(vm.paths, Life("starting"))
    try:
        vm_moving.require_settled(vm.paths)
        spec = _spec(vm)
        _end_handover(vm)
        vm_start.identities(spec, check_mode=False)
        vm_prepare.require_rules(vm, spec)
        vm_prepare.prepare(vm, spec)
    except MicrovmError as error:
        vm_life.write(vm.paths, Life("starting", error=str(error)))
        raise
    return 0


def boot(arguments: argparse.Namespace) -> int:
    """Create and boot the VM in the VMM that has just been started."""
    vm = _vm(arguments)
    if _held(vm):
        return 0
    try:
        spec = _spec(vm)
        vm_start.wait_for_api(vm.paths.api_socket, vm.supervisor)
        vm_start.create(vm, spec)
        vm_start.boot_and_wait(vm, spec)
    except MicrovmError as error:
        vm_life.write(vm.paths, Life("starting", error=str(error)))
        raise
    vm_start.note_boot(vm, spec)
    return 0


def stop(arguments: argparse.Namespace) -> int:
    """Stop the VM: press its power button, leave it some time, then end it."""
    vm = _vm(arguments)
    if vm.supervisor.pid() is None:  # it has ended by itself
        return 0
    life = vm_life.read(vm.paths) or Life("running")
    grace = arguments.grace if life.grace is None else life.grace
    vm_life.write(vm.paths, Life("stopping"))
    stopped_by = vm_stop.ask(vm, grace)
    vm_life.write(vm.paths, Life("stopping", stopped_by=stopped_by))
    return 0


def _end_handover(vm: Vm) -> None:
    """Take back what is left of a move that was cut short, of which the VM's journal tells."""
    if Journal.read(vm.paths) is not None:
        unit_handover.clear(vm, _spec(vm))
        template = (vm_record.read(vm.paths) or {})["options"].get("unit") or DEFAULT_UNIT
        SystemdUnit(vm.paths, template=template, runner=vm.runner).end_reload()


def cleanup(arguments: argparse.Namespace) -> int:
    """Remember how the VM ended, and remove what its VMM has left."""
    vm = _vm(arguments)
    _end_handover(vm)
    ended = vm_life.ended(vm_life.read(vm.paths), os.environ, oom_kills=oom_kills())
    vm_life.write(vm.paths, ended)
    shutil.rmtree(vm.paths.run, ignore_errors=True)
    return LOST if ended.reason in ("crashed", "oom_killed") else 0


def handover(arguments: argparse.Namespace) -> int:
    """Move the VM to the VMM that the unit has started beside the first."""
    vm = _vm(arguments)
    journal = Journal.read(vm.paths)
    if journal is None or journal.place is not None:
        raise MicrovmError("no move to another VMM has been begun; ch_upgrade does that", vm=vm.paths.name)
    return 0 if unit_handover.take_over(vm, _spec(vm), journal) == "there" else LOST


def _stop_arguments(parser: argparse.ArgumentParser) -> None:
    name_argument(parser)
    parser.add_argument("--grace", type=float, default=30, help="seconds that the guest has after the power button")


COMMANDS = (
    Command("prepare", "make what a VM needs on the host; its unit calls this", prepare),
    Command("boot", "create and boot a VM in its VMM; its unit calls this", boot),
    Command("stop", "stop a VM in its VMM; its unit calls this", stop, _stop_arguments),
    Command("cleanup", "remember how a VM ended, and clean up; its unit calls this", cleanup),
    Command("handover", "move a VM to a second VMM in its unit; that unit calls this", handover),
)
