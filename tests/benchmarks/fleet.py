# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Print how long the playbooks take over three hosts, over ssh, with 1, 10, 50 and 100 VMs on each.

Usage: fleet.py [--hosts N] [COUNT ...]

The hosts are those of tests/support/fleet, the VMs are real VMMs with the tiny PVH guest, which halts. Needs root, and the
Makefile's settings. "again" is a run that changes nothing. What a host and a VM cost is the time divided by their number:
all hosts of this machine share its processors.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parents[1] / "support"
sys.path.insert(0, str(SUPPORT))

import pvh_guest

FLEET = [sys.executable, str(SUPPORT / "fleet/fleet.py")]
# Where the hosts see what is on this machine.
SHOWN = Path("/opt/microvm")
STAND_IN = SUPPORT / "qemu_vmm" / "cloud-hypervisor"


@contextmanager
def fleet(directory: Path, hosts: int, show: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the inventory's hosts as long as they are up."""
    argv = [*FLEET, "up", str(directory), "--hosts", str(hosts)]
    for path in show:
        argv += ["--show", path]
    try:
        yield json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    finally:
        subprocess.run([*FLEET, "down", str(directory)], check=True)


def play(inventory: Path, playbook: str, **variables: object) -> float:
    """Run one of the collection's playbooks; return the seconds that it took. Its output is shown where it failed."""
    argv = [
        "ansible-playbook",
        "-i",
        str(inventory),
        f"microvm.cloud_hypervisor.{playbook}",
        "-e",
        json.dumps(variables),
    ]
    start = time.perf_counter()
    environment = {
        **os.environ,
        "ANSIBLE_PIPELINING": "1",
        # Connections that an earlier fleet left open at these addresses lead there.
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(inventory.parent / "cp"),
    }
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(done.stdout[-4000:] + done.stderr)
    return time.perf_counter() - start


def variables(vmm: Path) -> dict[str, Any]:
    """Return what all hosts have in common."""
    return {
        "host_install_packages": False,
        "vm_images": [
            {
                "name": "tiny",
                "disk": {"src": str(SHOWN / "guest/root.raw")},
                "kernel": {"src": str(SHOWN / "guest/pvh.elf")},
                "size": "1MiB",
            }
        ],
        "vm_defaults": {"image": "tiny", "vmm": str(SHOWN / vmm.parent.name / vmm.name), "memory": {"size": "32MiB"}},
        "vm_grace": 0,
    }


def allow_translation(directory: Path, host: str) -> None:
    """Let the stand-in's QEMU execute what it wrote, which the VMs' unit forbids."""
    drop_ins = directory / "hosts" / host / "root/etc/systemd/system/microvm@.service.d"
    drop_ins.mkdir(parents=True)
    (drop_ins / "stand-in.conf").write_text("[Service]\nMemoryDenyWriteExecute=no\n")


def row(inventory: Path, hosts: int, count: int) -> str:
    """Bring up VMs on each host, run again, ask for the status, and tear down; return the times."""
    vms = [{"name": f"vm{number}"} for number in range(count)]
    first = play(inventory, "provision", vm_instances=vms)
    again = play(inventory, "provision", vm_instances=vms)
    status = play(inventory, "status")
    gone = play(inventory, "teardown", vm_instances=vms)
    per_host = [seconds / hosts for seconds in (first, again)]
    per_vm = [seconds / hosts / count for seconds in (first, again, gone)]
    return (
        f"{count:>10} {first:>11.1f} {per_host[0]:>8.1f} {per_vm[0]:>7.2f} {again:>7.1f} {per_host[1]:>8.1f} "
        f"{per_vm[1]:>7.2f} {status:>8.1f} {gone:>10.1f} {per_vm[2]:>7.2f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("counts", type=int, nargs="*", default=[1, 10, 50, 100])
    arguments = parser.parse_args()
    vmm = Path(os.environ.get("MICROVM_VMM") or shutil.which("cloud-hypervisor") or STAND_IN).resolve()
    directory = Path(os.environ["MICROVM_CACHE"]) / "fleet"
    shown = f"{vmm.parent}:{SHOWN / vmm.parent.name}"
    with tempfile.TemporaryDirectory() as text:
        guest, inventory = Path(text) / "guest", Path(text) / "hosts.json"
        guest.mkdir()
        pvh_guest.write(guest / "pvh.elf", idle=True)
        (guest / "root.raw").write_bytes(bytes(1 << 20))
        with fleet(directory, arguments.hosts, [shown, f"{guest}:{SHOWN}/guest"]) as hosts:
            for host in hosts if vmm == STAND_IN.resolve() else ():
                allow_translation(directory, host)
            inventory.write_text(json.dumps({"hypervisors": {"hosts": hosts, "vars": variables(vmm)}}))
            play(inventory, "provision", vm_instances=[])  # prepares the hosts
            print(f"with {vmm}, {arguments.hosts} hosts, seconds")
            print(
                "VMs a host   provision   a host    a VM   again   a host    a VM   status   teardown    a VM",
                flush=True,
            )
            for count in arguments.counts:
                print(row(inventory, arguments.hosts, count), flush=True)


if __name__ == "__main__":
    main()
