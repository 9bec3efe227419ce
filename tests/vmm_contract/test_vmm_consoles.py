# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The serial port and the console: ptys, files and sockets."""

from __future__ import annotations

import os
import select
import socket
import stat
import time
import tty

from vmm_process import SECONDS, Vmm, pvh_guest, refused, until


def read_until(fd: int, word: bytes) -> bytes:
    """Read until ``word`` has come."""
    data, deadline = b"", time.monotonic() + SECONDS
    while word not in data:
        assert time.monotonic() < deadline, data
        if select.select([fd], [], [], 0.1)[0]:
            data += os.read(fd, 4096)
    return data


def pty_of(vmm: Vmm, name: str = "serial") -> str:
    """Return the path of the pty that vm.info tells."""
    config = vmm.client.info()["config"][name]
    assert config["mode"] == "Pty"
    return str(config["file"])


def attach(path: str) -> int:
    """Open a pty as a terminal program does, raw."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(fd)
    return fd


def test_a_pty_there_and_back(vmm: Vmm) -> None:
    vmm.client.create(vmm.config(serial={"mode": "Pty"}))
    path = pty_of(vmm)
    assert path.startswith("/dev/pts/")
    assert stat.S_ISCHR(os.stat(path).st_mode)
    vmm.client.act("boot")
    assert pty_of(vmm) == path, "the pty is there from vm.create on"
    fd = attach(path)
    try:
        os.write(fd, b"ping, pong")
        assert pvh_guest.BANNER in read_until(fd, b"ping, pong"), "what came before somebody attached is kept"
        os.write(fd, b"q")
        assert vmm.wait() == 0
    finally:
        os.close(fd)


def test_one_can_detach_and_attach_again(vmm: Vmm) -> None:
    vmm.boot(serial={"mode": "Pty"})
    for word in (b"one", b"two"):
        fd = attach(pty_of(vmm))
        os.write(fd, word)
        read_until(fd, word)
        os.close(fd)


def test_a_reboot_makes_a_new_pty(vmm: Vmm) -> None:
    vmm.boot(serial={"mode": "Pty"})
    old = attach(pty_of(vmm))
    os.write(old, b"x")
    read_until(old, b"x")
    vmm.client.act("reboot")
    # The old one hangs up.
    until("the hang-up", lambda: select.select([old], [], [], 0)[0] and _ends(old))
    os.close(old)
    new = attach(pty_of(vmm))
    os.write(new, b"anew")
    assert pvh_guest.BANNER in read_until(new, b"anew")
    os.close(new)


def _ends(fd: int) -> bool:
    try:
        return os.read(fd, 4096) == b""
    except OSError:
        return True


def test_a_file(vmm: Vmm) -> None:
    vmm.boot()
    assert stat.S_IMODE(vmm.serial.stat().st_mode) == 0o600
    assert vmm.serial.read_bytes() == pvh_guest.BANNER
    vmm.client.act("reboot")
    vmm.wait_banner()
    assert vmm.serial.read_bytes() == pvh_guest.BANNER, "each boot starts the file anew"


def test_a_socket(vmm: Vmm) -> None:
    path = vmm.directory / "serial.sock"
    with vmm.boot_on_socket() as guest:
        guest.sendall(b"y")
        assert guest.recv(1) == b"y"
        assert vmm.client.info()["config"]["serial"] == {"mode": "Socket", "socket": str(path)}
        vmm.client.act("shutdown")
        assert not path.exists()


def test_a_socket_keeps_what_came_before_somebody_attached(vmm: Vmm) -> None:
    path = vmm.directory / "serial.sock"
    vmm.boot(serial={"mode": "Socket", "socket": str(path)})
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.connect(str(path))
        assert pvh_guest.BANNER in read_until(first.fileno(), pvh_guest.BANNER)
        second.connect(str(path))
        second.sendall(b"two")
        read_until(second.fileno(), b"two")
        assert first.recv(100) == b"", "a new connection ends the one before it"


def test_what_is_not_there(vmm: Vmm) -> None:
    status, causes = refused(
        lambda client: client.create(vmm.config(serial={"mode": "File", "file": "/nosuch/file"})), vmm
    )
    assert status == 500
    assert causes == (
        "Error from API",
        "The VM could not be created",
        "Error creating console devices",
        "Error creating console device",
        "No such file or directory (os error 2)",
    )


def test_a_serial_socket_that_a_dead_vmm_left(vmm: Vmm) -> None:
    path = vmm.directory / "serial.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    serial = {"mode": "Socket", "socket": str(path)}
    assert refused(lambda client: client.create(vmm.config(serial=serial)), vmm)[1][-1] == (
        "Address already in use (os error 98)"
    )


def test_a_vsock_socket_that_a_dead_vmm_left(vmm: Vmm) -> None:
    path = vmm.directory / "vsock.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    vmm.client.create(vmm.config(vsock={"cid": 3, "socket": str(path)}))
    assert refused(lambda client: client.act("boot"), vmm)[1][-2:] == (
        "Error binding to the host-side Unix socket",
        "Address already in use (os error 98)",
    )
    path.unlink()
    vmm.client.act("boot")
    vmm.client.act("shutdown")
    assert not path.exists()


def test_no_serial_port(vmm: Vmm) -> None:
    for mode in ("Off", "Null"):
        vmm.boot(serial={"mode": mode})
        assert vmm.client.info()["config"]["serial"] == {"mode": mode}
        vmm.client.act("delete")


def test_the_console_is_a_device_of_its_own(vmm: Vmm) -> None:
    vmm.boot(console={"mode": "Pty"})
    assert os.path.exists(pty_of(vmm, "console"))
    assert "__console" in vmm.client.info()["device_tree"]
