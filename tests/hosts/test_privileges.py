# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a VMM under systemd can do, and what it cannot."""

from __future__ import annotations

import pytest
from conftest import Node

# What systemd-analyze(1) security may find: 10 is a service that can do anything, 0 one that can do nothing.
MOST_EXPOSURE = 1.6


def test_a_vmm_has_a_user_of_its_own_and_no_capability(node: Node) -> None:
    node.vm("web", nets=[{"tap": "hotap-5"}])
    status = dict(line.split(":\t", 1) for line in node.out(f"cat /proc/{node.info('web')['pid']}/status").splitlines())
    uid = node.out("id --user vm-web")
    assert set(status["Uid"].split()) == {uid}
    assert uid != "0"
    for sort in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert int(status[f"Cap{sort}"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert node.out("cat /sys/class/net/hotap-5/owner") == uid
    assert node.out("stat --format=%U:%a /run/microvm/web") == "vm-web:700"


def test_the_unit_is_exposed_to_little(node: Node) -> None:
    node.vm("web", state="present")
    node.ssh(f"systemd-analyze security --threshold={MOST_EXPOSURE * 10:g} microvm@web.service")


def test_only_root_and_the_vms_user_reach_its_api(node: Node) -> None:
    node.vm("web")
    node.vm("other")

    def reaches(user: str) -> bool:
        connect = "import socket; socket.socket(socket.AF_UNIX).connect('/run/microvm/web/api.sock')"
        return node.ssh(f'setpriv --reuid={user} --clear-groups python3 -c "{connect}"', check=False).returncode == 0

    assert reaches("root")
    assert reaches("vm-web")
    assert not reaches("vm-other")
    assert not reaches("nobody")


def opens(node: Node, path: str) -> str:
    """Ask the VMM of the VM ``web`` itself to open a file, as one that is taken over would; return what comes of it."""
    program = (
        "import sys; sys.path.insert(0, '/usr/local/bin/microvm'); from microvm.vmm_api import VmmClient; "
        "VmmClient('/run/microvm/web/api.sock').add('disk', "
        f"{{'path': '{path}', 'image_type': 'Raw', 'readonly': True}})"
    )
    done = node.ssh("python3", "-c", f'"{program}"', check=False)
    return "opened" if done.returncode == 0 else done.stderr.splitlines()[-1]


def test_a_vmm_opens_its_own_disk_and_no_other_s(node: Node) -> None:
    paths = {name: f"/var/lib/microvm/vms/{name}/root.raw" for name in ("web", "other")}
    for path in paths.values():
        node.ssh(f"mkdir -p $(dirname {path}) && truncate -s 1M {path}")
    for name, path in paths.items():
        node.vm(name, disks=[{"id": "root", "path": path, "image_type": "raw"}])
    assert node.out(f"stat --format=%U:%a {paths['web']}") == "vm-web:600"

    node.ssh("truncate -s 1M /var/lib/microvm/vms/web/more.raw && chown vm-web: /var/lib/microvm/vms/web/more.raw")
    assert opens(node, "/var/lib/microvm/vms/web/more.raw") == "opened"
    assert "Permission denied" in opens(node, paths["other"])
    assert "Permission denied" in opens(node, "/etc/shadow")


@pytest.mark.real_vmm
def test_a_vmm_opens_no_file_that_everyone_may_read(node: Node) -> None:
    """It is Landlock that keeps it from the VMM."""
    node.vm("web")
    assert "Permission denied" in opens(node, "/etc/passwd")


def test_a_disk_of_another_vm_is_not_handed_over(node: Node) -> None:
    path = "/var/lib/microvm/vms/web/root.raw"
    node.ssh(f"mkdir -p $(dirname {path}) && truncate -s 1M {path}")
    disks = [{"id": "root", "path": path, "image_type": "raw"}]
    node.vm("web", disks=disks)
    refused = node.vm("other", disks=disks, fails=True)
    assert f"'{path}' belongs to the user 'vm-web'" in refused["msg"]
    assert node.info("web")["state"] == "running"
    node.vm("web", by_name=True, state="absent", grace=0)
    assert node.out(f"stat --format=%U {path}") == "root"


def test_what_the_user_cannot_read_is_named(node: Node) -> None:
    node.ssh("install --mode=600 /srv/pvh.elf /srv/secret.elf")
    refused = node.vm("web", payload={"kernel": "/srv/secret.elf"}, fails=True)
    assert "'/srv/secret.elf' cannot be read by the VM's user 'vm-web'" in refused["msg"]
