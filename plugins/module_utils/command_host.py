# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The subcommands for all VMs of a host: ``metrics`` and ``rotate-logs``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import log_rotation, metrics, vm_facts, vm_record
from .bulk import run_each
from .command import Command
from .errors import MicrovmError
from .files import is_own
from .runner import HostRunner
from .sizes import parse_size
from .vm_paths import Paths


def tell_metrics(arguments: argparse.Namespace) -> int:
    """Write what is known of the VMs for Prometheus, to a directory of node_exporter's or to standard output."""
    state_dir, run_dir = arguments.state_dir, arguments.run_dir
    outcomes = run_each(
        [{"name": name} for name in vm_record.known(state_dir)],
        lambda item: vm_facts.gather(item, state_dir=state_dir, run_dir=run_dir, runner=HostRunner()),
    )
    families = metrics.families(
        {name: None if isinstance(found, MicrovmError) else found.facts for name, found in outcomes.items()}
    )
    if arguments.directory is None:
        sys.stdout.write(metrics.text(families))
    else:
        metrics.write(arguments.directory, families)
    return 0


def rotate_logs(arguments: argparse.Namespace) -> int:
    """Rotate the logs of all VMs that have grown: those of the serial ports and consoles, and of the VMMs."""
    size = parse_size(arguments.size, option="--size")
    failures = []
    for name in vm_record.known(arguments.state_dir):
        paths = Paths.of(name, state_dir=arguments.state_dir, run_dir=arguments.run_dir)
        config = (vm_record.read(paths) or {}).get("config", {})
        consoles = [config.get(line) or {} for line in ("serial", "console")]
        logs = [Path(console["file"]) for console in consoles if console.get("mode") == "File"]
        if is_own(paths.run):  # what a unit's VMM prints is in the journal
            logs.append(paths.vmm_log)
        for log in logs:
            try:
                log_rotation.rotate(log, size=size, keep=arguments.keep)
            except MicrovmError as error:
                failures.append(str(error.for_vm(name)))
    if failures:
        raise MicrovmError("; ".join(failures))
    return 0


def _metrics_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--directory", type=Path, help="where node_exporter's textfile collector looks")


def _rotate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", default="10MiB", help="how large a log is before it is rotated")
    parser.add_argument("--keep", type=int, default=log_rotation.DEFAULT_KEEP, help="how many are kept")


COMMANDS = (
    Command("metrics", "tell Prometheus of the VMs", tell_metrics, _metrics_arguments),
    Command("rotate-logs", "rotate the VMs' logs that have grown", rotate_logs, _rotate_arguments),
)
