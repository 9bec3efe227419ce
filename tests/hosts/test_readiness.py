# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for a VM that is a unit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pvh_guest
from conftest import SECONDS, Node

BANNER = pvh_guest.BANNER.decode().strip()


def test_a_vm_is_waited_for_once_in_a_boot(node: Node) -> None:
    options = {
        "nets": [{"tap": "hotap-6"}],
        "wait_for": {"api": True, "tap": True, "serial": BANNER, "timeout": SECONDS},
    }
    done = node.vm("web", **options)
    assert done["ready_after"].keys() == {"api", "tap", f"serial {BANNER!r}"}
    assert node.out("stat --format=%U:%a /run/microvm/web/ready.json") == "root:600"
    assert node.vm("web", **options)["actions"] == []
    node.ssh("systemctl restart microvm@web")
    assert any("wait for" in action for action in node.vm("web", **options)["actions"])


def test_a_vm_that_does_not_get_ready_is_told_of_and_runs_on(node: Node) -> None:
    failed = node.vm("web", wait_for={"serial": "never", "timeout": 1}, fails=True)
    assert "the VM runs and was not ready within 1 seconds: serial 'never'" in failed["msg"]
    assert f"on the serial port: {BANNER}" in failed["msg"]
    assert "vm booted" in failed["msg"]
    invocation = node.show("web", "InvocationID")
    assert node.out(f"journalctl --quiet --output=cat --lines=1 _SYSTEMD_INVOCATION_ID={invocation}") in failed["msg"]
    assert node.info("web")["state"] == "running"


def test_a_vm_that_ends_while_it_is_waited_for_is_told_of(node: Node) -> None:
    wait_for = {"serial": "never", "timeout": SECONDS}
    with ThreadPoolExecutor() as pool:
        failing = pool.submit(node.vm, "web", wait_for=wait_for, restart="no", fails=True)
        node.until(lambda: node.ssh("test -S /run/microvm/web/api.sock", check=False).returncode == 0)
        node.until(lambda: node.show("web", "ActiveState") == "active" and node.info("web")["state"] == "running")
        node.ssh("systemctl kill --signal=KILL --kill-who=main microvm@web")
        failed = failing.result()
    assert "the VM ended while it was waited for serial 'never'" in failed["msg"]
    assert "vm booted" in failed["msg"]


def test_a_guest_reports_through_a_socket_that_only_its_vmm_reaches(node: Node) -> None:
    """The tiny guest has no driver for its vsock; what its VMM would pass on is written as the VMM's user."""
    path = "/run/microvm/web/vsock.sock_9999"
    report = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{path}'); s.sendall(b'READY=1')"

    def reports(user: str) -> bool:
        argv = f'setpriv --reuid={user} --regid={user} --clear-groups python3 -c "{report}"'
        return node.ssh(argv, check=False).returncode == 0

    node.ssh("groupadd --force nobody")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(node.vm, "web", vsock={"cid": 77}, wait_for={"notify": True, "timeout": SECONDS})
        node.until(lambda: node.ssh(f"test -S {path}", check=False).returncode == 0)
        node.until(lambda: node.out(f"stat --format=%U:%a {path}") == "vm-web:600")
        assert not reports("nobody")
        assert not waiting.done()
        node.until(lambda: reports("vm-web"))
        assert waiting.result()["ready_after"].keys() == {"notify"}
    assert node.ssh(f"test -e {path}", check=False).returncode != 0
