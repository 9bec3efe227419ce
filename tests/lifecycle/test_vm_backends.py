# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Devices that another process serves over vhost-user: a directory by QEMU's virtiofsd, a disk by its storage daemon.

The tiny guest drives none of them. What it takes for them to be there and go is between VMM and backend.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vm_host import Host, nothing_left
from waiting import until

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_live
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
SHARED = {"memory": {"size": "128MiB", "shared": True}}
Serve = Callable[[str], str]


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_live, "UNPLUG_SECONDS", 0.2)


@pytest.fixture
def real(host: Host) -> Host:
    """A real VMM: the stand-in refuses these devices by name."""
    if "qemu_vmm" in host.vmm:
        pytest.skip("the stand-in does not emulate this, and says so")
    return host


@pytest.fixture
def serve(real: Host) -> Iterator[Callable[[list[str], Path], str]]:
    """Run a backend until its socket is there; return the socket's path."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(argv: list[str], socket: Path) -> str:
        running.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        until(f"the socket of {argv[0]}", socket.is_socket)
        return str(socket)

    yield begin
    for backend in running:
        backend.terminate()
        backend.wait()


@pytest.fixture
def fs(real: Host, serve: Callable[[list[str], Path], str]) -> dict[str, Any]:
    """A directory."""
    if not VIRTIOFSD.exists():
        pytest.skip(f"there is no {VIRTIOFSD}")
    directory, socket = real.payload.parent / "shared", real.payload.parent / "fs.sock"
    directory.mkdir()
    argv = [str(VIRTIOFSD), f"--socket-path={socket}", "-o", f"source={directory}"]
    return {"id": "shared", "tag": "t", "socket": serve(argv, socket)}


@pytest.fixture
def block(real: Host, serve: Callable[[list[str], Path], str]) -> str:
    """The socket of a disk's backend."""
    image, socket = real.payload.parent / "served.img", real.payload.parent / "block.sock"
    image.write_bytes(bytes(1 << 20))
    argv = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=image,filename={image}"]
    address = f"addr.type=unix,addr.path={socket}"
    return serve([*argv, "--export", f"type=vhost-user-blk,id=export,node-name=image,{address},writable=on"], socket)


@pytest.fixture(params=["fs", "disks", "generic_vhost_user"])
def device(request: pytest.FixtureRequest, real: Host) -> tuple[str, list[dict[str, Any]]]:
    """One kind of devices, and the devices; a disk comes after the root disk, which stays."""
    if request.param == "fs":
        return "fs", [request.getfixturevalue("fs")]
    socket = request.getfixturevalue("block")
    if request.param == "disks":
        return "disks", [root(real), {"id": "served", "vhost_socket": socket}]
    if real.release < (52, 0):
        pytest.skip("generic_vhost_user came with v52.0")
    return "generic_vhost_user", [{"id": "served", "socket": socket, "device_type": 2, "queue_sizes": [128]}]


def root(host: Host) -> dict[str, Any]:
    path = host.payload.parent / "root.img"
    path.write_bytes(bytes(1 << 20))
    return {"id": "root", "path": str(path)}


def test_a_device_from_the_boot_on(real: Host, device: tuple[str, list[dict[str, Any]]]) -> None:
    kind, devices = device
    asked: dict[str, Any] = {**SHARED, kind: devices}
    assert real.ensure("web", **asked).facts["restart_reasons"] == []
    again = real.ensure("web", **asked)
    assert (again.changed, again.facts["restart_reasons"]) == (False, [])
    assert [there["id"] for there in real.info("web")["config"][kind]] == [wanted["id"] for wanted in devices]
    if kind != "fs":  # QEMU's virtiofsd serves one VMM and no other after it
        assert real.ensure("web", **asked, state="restarted").facts["state"] == "running"


def test_a_device_that_comes_and_goes(real: Host, device: tuple[str, list[dict[str, Any]]]) -> None:
    kind, devices = device
    *before, added = devices
    name = added["id"]
    first = real.ensure("web", **SHARED, **{kind: before})
    planned = real.ensure("web", **SHARED, **{kind: devices}, check_mode=True)
    done = real.ensure("web", **SHARED, **{kind: devices})
    assert planned.actions == done.actions == ("recorded what is asked", f"plugged in {name}")
    again = real.ensure("web", **SHARED, **{kind: devices})
    assert (again.changed, again.facts["restart_reasons"], again.facts["pid"]) == (False, [], first.facts["pid"])
    gone = real.ensure("web", **SHARED, **{kind: before})
    assert gone.actions[-1] == f"unplugged {name}"
    # This guest never lets go of a device.
    assert gone.facts["restart_reasons"] == [] and not real.ensure("web", **SHARED, **{kind: before}).changed
    after = real.ensure("web", **SHARED, **{kind: before}).facts["restart_reasons"]
    assert after == [f"{name} was unplugged, and the guest has not let go of it"]


def test_shared_memory_is_asked_for_before_anything_is_made(
    real: Host, device: tuple[str, list[dict[str, Any]]]
) -> None:
    kind, devices = device
    option = "disks.vhost_socket" if kind == "disks" else kind
    with pytest.raises(MicrovmError, match=f"option '{option}': takes memory.shared: true, or huge pages"):
        real.ensure("web", **{kind: devices})
    assert nothing_left(real)
    real.ensure("web", memory={"size": "128MiB"}, **{kind: devices[:-1]})
    reasons = real.ensure("web", **SHARED, **{kind: devices}).facts["restart_reasons"]
    assert any(reason.endswith("the VM has booted without shared memory") for reason in reasons), reasons
    done = real.ensure("web", **SHARED, **{kind: devices}, apply="restart")
    assert done.facts["restart_reasons"] == []


def test_a_backend_that_does_not_listen_is_named_before_anything_is_made(host: Host) -> None:
    fs = [{"id": "shared", "tag": "t", "socket": "/nonsense"}]
    with pytest.raises(MicrovmError, match="option 'fs.shared': .*'/nonsense' is no socket; start the backend"):
        host.ensure("web", **SHARED, fs=fs)
    assert not any(host.run_dir.glob("*"))
    host.ensure("web", **SHARED)
    with pytest.raises(MicrovmError, match="option 'fs.shared': '/nonsense' is no socket"):
        host.ensure("web", **SHARED, fs=fs)
