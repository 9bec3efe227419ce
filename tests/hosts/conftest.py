# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host with systemd, set up by the role host, and the VMs on it: the tiny PVH guest in the real VMM, or the stand-in.

What only the real VMM does, such as to restrict itself, is marked ``real_vmm`` and skipped where there is none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ansible
import pvh_guest
import pytest
import real_vmms
from fleet import fleet
from vm_host import STAND_IN

CHECKOUT = Path(__file__).parents[2]
# Where the host sees the collection and Ansible, to run modules with.
LIBRARY = "/opt/library"
SECONDS = 180
# The first of the real VMMs that start a guest on this machine.
REAL = next((vmm for vmm in real_vmms.paths() if not real_vmms.why_not(vmm)), None)
VERSION = real_vmms.label(REAL or str(STAND_IN)).removeprefix("v")
# The role installs one file; QEMU translates code, which it writes and then executes.
STAND_IN_FILE = f'#!/bin/sh\nexec {LIBRARY}/ansible_collections/microvm/cloud_hypervisor/tests/support/qemu_vmm/cloud-hypervisor "$@"\n'
STAND_IN_NEEDS = "[Service]\nMemoryDenyWriteExecute=no\n"


@dataclass
class Node:
    """The host: how to reach it, and what was put on it."""

    address: str
    directory: Path
    inventory: Path

    def ssh_argv(self, *options: str) -> list[str]:
        """Return the command line that reaches the host, up to the command to run there."""
        argv = ["ssh", "-i", str(self.directory / "key"), "-o", "StrictHostKeyChecking=no"]
        argv += ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=2"]
        argv += ["-o", "ControlMaster=auto", "-o", f"ControlPath={self.directory}/ssh-%C", "-o", "ControlPersist=60"]
        return [*argv, "-o", "ServerAliveInterval=1", *options, f"root@{self.address}"]

    def ssh(self, *command: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command line on the host."""
        done = subprocess.run([*self.ssh_argv(), *command], input=stdin, text=True, capture_output=True, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"{command}: exit status {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def out(self, *command: str) -> str:
        """Return what a command line prints on the host."""
        return self.ssh(*command).stdout.strip()

    def module(self, name: str, /, **options: Any) -> dict[str, Any]:
        """Run one of the collection's modules on the host."""
        done = self.ssh(
            f"PYTHONPATH={LIBRARY} python3 {LIBRARY}/run_module.py {name}", stdin=json.dumps(options), check=False
        )
        try:
            return dict(json.loads(done.stdout.splitlines()[-1]))
        except (ValueError, IndexError) as error:
            raise AssertionError(f"{name} has failed: {done.stdout}{done.stderr}") from error

    def vm(self, name: str, *, by_name: bool = False, fails: bool = False, **options: Any) -> dict[str, Any]:
        """Ask ch_vm for one VM, by all its options or by its name alone; return what it is, or why it failed."""
        whole = {} if by_name else {"payload": {"kernel": "/srv/pvh.elf"}, "memory": {"size": "64MiB"}, "grace": 0}
        result = self.module("ch_vm", vms=[{"name": name, **whole, **options}], _ansible_check_mode=False)
        entry = dict(result["vms"][name])
        assert bool(entry.get("failed")) == fails, entry
        return entry

    def info(self, name: str) -> dict[str, Any]:
        """Ask ch_vm_info for one VM."""
        return dict(self.module("ch_vm_info", names=[name])["vms"][name])

    def show(self, name: str, what: str) -> str:
        """Return a property of a VM's unit."""
        return self.out(f"systemctl show --value --property={what} microvm@{name}")

    def cgroup(self, name: str, controller: str) -> str:
        """Return the directory of a VM's cgroup."""
        return f"/sys/fs/cgroup/{controller}{self.show(name, 'ControlGroup')}"

    def type(self, vm: dict[str, Any], text: bytes) -> None:
        """Type on the serial port of a VM whose serial port is a PTY."""
        self.ssh(f"printf '{text.decode()}' >{vm['pty']}")

    def until(self, what: Callable[[], Any]) -> Any:
        """Wait until ``what`` returns something true, and return it."""
        deadline = time.monotonic() + SECONDS
        while not (found := what()):
            assert time.monotonic() < deadline, "it takes too long"
            time.sleep(0.1)
        return found

    def reboot(self) -> None:
        """Restart the host, and wait until it is up."""
        started = "cut --delimiter=' ' --fields=22 /proc/1/stat"
        before = self.out(started)
        self.ssh("systemctl reboot", check=False)
        self.until(lambda: self.ssh(started, check=False).stdout.strip() not in ("", before))
        self.ssh("systemctl is-system-running --wait", check=False)

    def role(self, **variables: Any) -> str:
        """Run the role host from here; return the recap's line."""
        play = [{"hosts": "all", "gather_facts": False, "roles": ["microvm.cloud_hypervisor.host"], "vars": variables}]
        playbook = self.directory / "role.yml"
        playbook.write_text(json.dumps(play))
        argv = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(self.inventory), str(playbook)]
        environment = {**os.environ, "ANSIBLE_PIPELINING": "true", "ANSIBLE_NOCOLOR": "true"}
        done = subprocess.run(argv, text=True, capture_output=True, check=False, env=environment, cwd=self.directory)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip().splitlines()[-1]


@pytest.fixture(autouse=True)
def _needs_the_real_vmm(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("real_vmm") and REAL is None:
        pytest.skip("there is no real VMM, or it cannot start a guest on this machine")


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A host with systemd, and nothing of ours."""
    payloads = tmp_path_factory.mktemp("payload")
    pvh_guest.write(payloads / "pvh.elf")
    pvh_guest.write(payloads / "counting.elf", counting=True)
    directory = Path(os.environ["MICROVM_CACHE"], "fleet").resolve()
    show = [
        f"{CHECKOUT}:{LIBRARY}/ansible_collections/microvm/cloud_hypervisor",
        f"{Path(ansible.__file__).parent}:{LIBRARY}/ansible",
        f"{CHECKOUT}/tests/support/fleet/run_module.py:{LIBRARY}/run_module.py",
        f"{payloads}/pvh.elf:/srv/pvh.elf",
        f"{payloads}/counting.elf:/srv/counting.elf",
    ]
    try:
        hosts = fleet.up(directory, ["h1"], show)
        inventory = directory / "inventory.json"
        inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
        yield Node(hosts["h1"]["ansible_host"], directory, inventory)
    finally:
        fleet.down(directory)


# Where there is no node_exporter its textfile collector's directory may be any.
METRICS = "/srv"
LOG_SIZE = 16 << 10


@pytest.fixture(scope="session")
def role_variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the role host is told."""
    vmm = REAL
    if vmm is None:
        vmm = str(tmp_path_factory.mktemp("vmm") / "cloud-hypervisor")
        Path(vmm).write_text(STAND_IN_FILE)
    return {
        "host_install_packages": False,
        "host_vmm": {"src": vmm, "version": VERSION},
        "host_log_size": str(LOG_SIZE),
        "host_metrics_dir": METRICS,
    }


@pytest.fixture(scope="session")
def prepared(bare: Node, role_variables: dict[str, Any]) -> Node:
    """The host once the role has run."""
    if REAL is None:
        bare.ssh("mkdir -p /usr/lib/systemd/system/microvm@.service.d")
        bare.ssh("cat >/usr/lib/systemd/system/microvm@.service.d/stand-in.conf", stdin=STAND_IN_NEEDS)
    bare.role(**role_variables)
    return bare


@pytest.fixture
def node(prepared: Node) -> Iterator[Node]:
    """The host with no VM on it before and after."""
    yield prepared
    known = prepared.module("ch_vm_info")["vms"]
    if known:
        prepared.module("ch_vm", vms=[{"name": name} for name in known], state="absent", grace=0)
    prepared.ssh("rm -rf /var/lib/microvm/vms/*")  # disks of the tests' own
