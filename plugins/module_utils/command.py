# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a subcommand of the program ``microvm`` consists of."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


def name_argument(parser: argparse.ArgumentParser) -> None:
    """Take a VM's name."""
    parser.add_argument("name", metavar="NAME", help="the VM")


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: ``run`` does it and returns the exit status, ``arguments`` says what it takes beside a VM's name."""

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    arguments: Callable[[argparse.ArgumentParser], None] = name_argument
