# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program ``microvm`` on a host: what is done there without Ansible. command_archive.py packs it.

A subcommand is a function in the file of its subject. That file lists it in COMMANDS, and this one lists the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import command_guest, command_host, command_receive, command_unit
from .errors import MicrovmError

COMMANDS = (
    *command_unit.COMMANDS,
    *command_receive.COMMANDS,
    *command_guest.COMMANDS,
    *command_host.COMMANDS,
)


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    result = argparse.ArgumentParser(prog="microvm", description="Look after this host's VMs.")
    result.add_argument("--state-dir", type=Path, default=Path("/var/lib/microvm"), help="where VMs are on record")
    result.add_argument("--run-dir", type=Path, default=Path("/run/microvm"), help="where the VMs' sockets are")
    subparsers = result.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, help=command.help, description=command.help)
        command.arguments(subparser)
        subparser.set_defaults(run=command.run)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit status. What a user can act on is one line on standard error."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except MicrovmError as error:
        sys.stderr.write(f"microvm: {error}\n")
        return 1
