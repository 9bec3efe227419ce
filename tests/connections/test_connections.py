# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules in a real guest that has no NIC: over its serial port, and over ssh through its vsock.

The stand-in gives the guest a vsock where QEMU_VMM_VSOCK names vhost-device-vsock; without, the tests of the vsock are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vm_host import RUNNER, STAND_IN

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import command_archive, vm_ready

CACHE = Path(os.environ["MICROVM_CACHE"])
VSOCK = os.environ.get("QEMU_VMM_VSOCK")
SECONDS = 900  # for a play, in a guest that is emulated
needs_vsock = pytest.mark.skipif(VSOCK is None, reason="QEMU_VMM_VSOCK does not name vhost-device-vsock")


class Guest:
    """A running guest and the program ``microvm`` of its host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.facts: dict[str, Any] = {}
        program = root / "microvm"
        program.write_bytes(command_archive.archive(sys.executable))
        program.chmod(0o755)
        self.command = f"{program} --state-dir {root / 'state'} --run-dir {root / 'run'}"

    def ensure(self, **options: Any) -> dict[str, Any]:
        outcome = vm_ready.ensure(
            {"name": "web", **options}, state_dir=self.root / "state", run_dir=self.root / "run", runner=RUNNER
        )
        return dict(outcome.facts)

    def play(self, connection: str, tasks: list[dict[str, Any]], **variables: Any) -> dict[str, Any]:
        """Run tasks in the guest; return their results by the tasks' names."""
        results = self.root / "results.json"
        tell: dict[str, Any] = {
            "name": "Tell the results",
            "ansible.builtin.copy": {
                "content": "{{ {"
                + ", ".join(f"'{task['name']}': it_{task['name']}" for task in tasks)
                + "} | to_json }}",
                "dest": str(results),
                "mode": "0600",
            },
            "delegate_to": "localhost",
            "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
        }
        registered = [{**task, "register": f"it_{task['name']}"} for task in tasks]
        play = {"hosts": "web", "gather_facts": False, "tasks": [*registered, tell]}
        host = {
            "ansible_connection": f"microvm.cloud_hypervisor.{connection}",
            "ansible_microvm_command": self.command,
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_remote_tmp": "/root/.ansible",
            **variables,
        }
        (self.root / "play.json").write_text(json.dumps([play]))
        (self.root / "inventory.json").write_text(json.dumps({"all": {"hosts": {"web": host}}}))
        done = subprocess.run(
            ["ansible-playbook", "-i", str(self.root / "inventory.json"), str(self.root / "play.json")],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "HOME": str(self.root)},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(results.read_text()))


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    guest = Guest(tmp_path_factory.mktemp("guest"))
    guest.facts = guest.ensure(
        vmm=str(STAND_IN),
        payload={
            "kernel": str(CACHE / "small_guest/vmlinuz"),
            "initramfs": str(CACHE / "python_guest/initramfs"),
            "cmdline": "console=ttyS0 quiet mitigations=off nokaslr",
        },
        memory={"size": "512MiB"},
        serial={"mode": "socket"},
        vsock={"cid": 77},
        wait_for={"timeout": SECONDS, **({"notify": True} if VSOCK else {"serial": "small-guest: ready"})},
    )
    yield guest
    guest.ensure(state="absent", grace=0)


def tasks_with_files(root: Path) -> list[dict[str, Any]]:
    """Return tasks that do what a connection is for, with a file that has all bytes."""
    (root / "sent").write_bytes(bytes(range(256)) * 4)
    return [
        {"name": "raw", "ansible.builtin.raw": "echo out; echo err >&2; cat /proc/sys/kernel/hostname"},
        {"name": "ping", "ansible.builtin.ping": {}},
        {"name": "copy", "ansible.builtin.copy": {"src": str(root / "sent"), "dest": "/root/sent", "mode": "0600"}},
        {"name": "fetch", "ansible.builtin.fetch": {"src": "/root/sent", "dest": f"{root}/fetched", "flat": True}},
    ]


def check(guest: Guest, results: dict[str, Any]) -> None:
    assert results["raw"]["stdout_lines"][0] == "out"
    assert results["ping"]["ping"] == "pong"
    assert results["copy"]["changed"]
    assert (guest.root / "fetched").read_bytes() == (guest.root / "sent").read_bytes()
    (guest.root / "fetched").unlink()


@needs_vsock
def test_the_guest_has_reported_over_vsock_that_it_is_ready(guest: Guest) -> None:
    assert guest.facts["ready_after"].keys() == {"notify"}


def test_over_the_serial_port(guest: Guest) -> None:
    results = guest.play(
        "serial", [*tasks_with_files(guest.root), {"name": "clean", "ansible.builtin.raw": "rm /root/sent"}]
    )
    check(guest, results)
    assert results["raw"]["stderr_lines"] == ["err"]


@needs_vsock
@pytest.mark.parametrize("pipelining", [False, True])
def test_over_ssh_through_the_vsock(guest: Guest, pipelining: bool) -> None:
    tasks = [*tasks_with_files(guest.root), {"name": "clean", "ansible.builtin.raw": "rm /root/sent"}]
    results = guest.play(
        "vsock",
        tasks,
        ansible_user="root",
        ansible_ssh_private_key_file=str(CACHE / "python_guest/key"),
        ansible_host_key_checking=False,
        ansible_ssh_common_args=f"-o UserKnownHostsFile={guest.root / 'known_hosts'} -o HashKnownHosts=no",
        ansible_ssh_transfer_method="piped",
        ansible_pipelining=pipelining,
    )
    check(guest, results)
    assert "web.localhost" in (guest.root / "known_hosts").read_text()


@needs_vsock
def test_a_port_at_which_nobody_listens(guest: Guest) -> None:
    done = subprocess.run([*guest.command.split(), "vsock", "web", "23"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "VM 'web': nothing in the guest listens on vsock port 23" in done.stderr
