# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The subcommands that lead into a guest: ``console`` and ``vsock``."""

from __future__ import annotations

import argparse
import sys

from . import console, vm_record
from .command import Command, name_argument
from .errors import MicrovmError
from .names import check_vm_name
from .vm_state import Vm
from .vsock_connect import proxy


def _vm(arguments: argparse.Namespace) -> Vm:
    vm = Vm.of(check_vm_name(arguments.name), state_dir=arguments.state_dir, run_dir=arguments.run_dir)
    if vm_record.read(vm.paths) is None:
        raise MicrovmError("no VM of this name is on record", vm=arguments.name)
    return vm


def attach(arguments: argparse.Namespace) -> int:
    """Attach standard input and output to a guest's serial port or console."""
    vm = _vm(arguments)
    try:
        if arguments.pipe:
            console.pipe(vm, arguments.line, sys.stdin.fileno(), sys.stdout.fileno())
        else:
            console.attend(vm, arguments.line, escape=console.escape_byte(arguments.escape))
    except MicrovmError as error:
        raise error.for_vm(arguments.name) from error
    return 0


def connect(arguments: argparse.Namespace) -> int:
    """Connect standard input and output to a guest's vsock port."""
    vm = _vm(arguments)
    try:
        proxy(vm.paths.vsock_socket, arguments.port, sys.stdin.fileno(), sys.stdout.fileno())
    except MicrovmError as error:
        raise error.for_vm(arguments.name) from error
    return 0


def _attach_arguments(parser: argparse.ArgumentParser) -> None:
    name_argument(parser)
    parser.add_argument(
        "--line", choices=["serial", "console"], default="serial", help="the serial port, or the console"
    )
    parser.add_argument("--escape", default=console.DEFAULT_ESCAPE, help="the key that leaves, such as ^], or none")
    parser.add_argument("--pipe", action="store_true", help="for programs: no key is special, and no text is ours")


def _connect_arguments(parser: argparse.ArgumentParser) -> None:
    name_argument(parser)
    parser.add_argument("port", type=int, nargs="?", default=22, metavar="PORT", help="the port, 22 if not given")


COMMANDS = (
    Command("console", "attach to a VM's serial port or console", attach, _attach_arguments),
    Command("vsock", "connect to a port of a VM's vsock, as ssh's ProxyCommand", connect, _connect_arguments),
)
