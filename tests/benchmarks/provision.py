# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Print how long a run of the role vm takes over 1, 10 and 50 VMs: the first one, and one that changes nothing.

Usage: provision.py [COUNT ...]

The VMs are real VMMs with the tiny PVH guest, on a state directory of their own. Needs root, and the Makefile's settings.
The run that changes nothing is the fastest of three; its CPU seconds, of the play and all that it starts, tell more than its
duration where the machine has other work.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import pvh_guest

PLAYBOOK = """- hosts: localhost
  gather_facts: false
  roles:
    - microvm.cloud_hypervisor.vm
"""


def run(directory: Path, **variables: object) -> tuple[float, float]:
    """Run the role; return the seconds that it took, and those of CPU. Its output is shown where it failed."""
    argv = [
        "ansible-playbook",
        "-i",
        "localhost,",
        "-c",
        "local",
        str(directory / "play.yml"),
        "-e",
        json.dumps(variables),
    ]
    start, used = time.perf_counter(), cpu_seconds()
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stdout[-4000:] + done.stderr)
    return time.perf_counter() - start, cpu_seconds() - used


def cpu_seconds() -> float:
    """Return what the children that have ended have used; the VMMs live on and are not among them."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure and print."""
    counts = [int(text) for text in sys.argv[1:]] or [1, 10, 50]
    vmm = os.environ.get("MICROVM_VMM") or str(Path(__file__).parents[1] / "support/qemu_vmm/cloud-hypervisor")
    rows = []
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        (directory / "play.yml").write_text(PLAYBOOK)
        # Guests that do not idle would leave the machine no time for the run.
        pvh_guest.write(directory / "pvh.elf", idle=True)
        (directory / "root.raw").write_bytes(bytes(1 << 20))
        common = {
            "ansible_python_interpreter": sys.executable,
            "vm_state_dir": str(directory / "state"),
            "vm_run_dir": str(directory / "run"),
            "vm_uplink": "lo",
            "vm_images": [
                {
                    "name": "tiny",
                    "disk": {"src": str(directory / "root.raw")},
                    "kernel": {"src": str(directory / "pvh.elf")},
                    "size": "1MiB",
                }
            ],
            "vm_defaults": {
                "image": "tiny",
                "vmm": vmm,
                "memory": {"size": "32MiB"},
                "tap_prefix": "bench",
            },
            "vm_grace": 0,
        }
        for count in counts:
            instances = [{"name": f"vm{number}"} for number in range(count)]
            try:
                first, _cpu = run(directory, **common, vm_instances=instances)
                again = min(run(directory, **common, vm_instances=instances) for _number in range(3))
            finally:
                gone, _cpu = run(directory, **common, vm_instances=instances, vm_state="absent")
            rows.append((count, first, *again, gone))
    print(f"with {vmm}")
    print(" VMs   provision s   no change s   ratio   CPU s   ratio   teardown s")
    for count, first, again, cpu, gone in rows:
        ratios = again / rows[0][2], cpu / rows[0][3]
        print(f"{count:>4} {first:>13.2f} {again:>13.2f} {ratios[0]:>7.2f} {cpu:>7.2f} {ratios[1]:>7.2f} {gone:>12.2f}")


if __name__ == "__main__":
    main()
