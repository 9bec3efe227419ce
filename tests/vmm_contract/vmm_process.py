# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One VMM process under test."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_api import VmmClient, VmmError

SUPPORT = Path(__file__).parents[1] / "support"
sys.path.insert(0, str(SUPPORT))

import pvh_guest
import real_vmms
from waiting import until

STAND_IN = SUPPORT / "qemu_vmm" / "cloud-hypervisor"
MIB = 1 << 20
SECONDS = 20  # until something that should happen is said not to

Call = Callable[[VmmClient], object]


class Vmm:
    """A VMM with a directory of its own; its ``config`` boots the PVH guest with the serial port in a file."""

    def __init__(self, executable: str, *arguments: str) -> None:
        self.executable = executable
        self.release = real_vmms.release(executable)
        self.directory = Path(tempfile.mkdtemp(prefix="vmm"))
        self.socket = self.directory / "api.sock"
        self.serial = self.directory / "serial.log"
        self.kernel = pvh_guest.write(self.directory / "guest.elf")
        self.events_file = self.directory / "events"
        self.client = VmmClient(str(self.socket), timeout=SECONDS)
        self.start(*arguments)

    def start(self, *arguments: str) -> None:
        """Start the VMM; wait until it answers."""
        argv = [self.executable, "--api-socket", f"path={self.socket}", "--event-monitor", f"path={self.events_file}"]
        with (self.directory / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [*argv, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        until("the API socket", self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.directory / "output").read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def config(self, **more: Any) -> dict[str, Any]:
        """Return a VmConfig that boots."""
        return {
            "payload": {"kernel": str(self.kernel)},
            "cpus": {"boot_vcpus": 1, "max_vcpus": 2},
            "memory": {"size": 64 * MIB},
            "serial": {"mode": "File", "file": str(self.serial)},
            "console": {"mode": "Off"},
            **more,
        }

    def boot(self, **more: Any) -> None:
        """Create and boot, with the guest on its serial port where that is a file."""
        self.client.create(self.config(**more))
        self.client.act("boot")
        if "serial" not in more:
            self.wait_banner()

    def wait_banner(self) -> None:
        """Wait for the guest's first words in the serial port's file."""
        until("the guest's banner", lambda: self.serial.exists() and pvh_guest.BANNER in self.serial.read_bytes())

    def image(self, name: str, size: int = MIB, *qemu_img: str) -> str:
        """Make a disk image, raw unless ``qemu_img`` has other arguments for ``qemu-img create``."""
        path = self.directory / name
        if qemu_img:
            subprocess.run(["qemu-img", "create", "-q", *qemu_img, str(path)], check=True)
        else:
            with path.open("wb") as file:
                file.truncate(size)
        return str(path)

    def boot_on_socket(self) -> socket.socket:
        """Create and boot with the serial port on a socket; return a connection to a guest that echoes."""
        self.boot(serial={"mode": "Socket", "socket": str(self.directory / "serial.sock")})
        return self.serial_socket()

    def serial_socket(self) -> socket.socket:
        """Return a connection to the serial port of a guest that echoes."""
        guest = socket.socket(socket.AF_UNIX)
        guest.settimeout(SECONDS)
        path = str(self.directory / "serial.sock")
        until("the serial port's socket", lambda: guest.connect_ex(path) == 0)
        guest.sendall(b"x")
        while b"x" not in guest.recv(100):
            pass
        return guest

    @property
    def state(self) -> str:
        """What vm.info says of the state."""
        return str(self.client.info()["state"])

    def raw(self, method: str, call: str, body: str | None = None) -> tuple[int, str]:
        """Send what our client would not; return the status and the body."""
        connection = http.client.HTTPConnection("localhost", timeout=SECONDS)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(SECONDS)
        connection.sock.connect(str(self.socket))
        try:
            connection.request(method, f"/api/v1/{call}", body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def events(self) -> list[str]:
        """List the events so far as ``source event``, each one checked for its form."""
        events = []
        text, decoder, position = self.events_file.read_text().strip(), json.JSONDecoder(), 0
        while position < len(text):
            event, end = decoder.raw_decode(text, position)
            assert event.keys() == {"timestamp", "source", "event", "properties"}
            assert event["timestamp"].keys() == {"secs", "nanos"}
            assert text[end : end + 2] in ("\n\n", ""), "a blank line ends an event"
            events.append(f"{event['source']} {event['event']}")
            position = end + 2
        return events

    def wait(self) -> int:
        """Wait for the end of the process; return its exit status."""
        return self.process.wait(SECONDS)

    def children(self) -> list[int]:
        """List the processes that the VMM started."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and _parent(entry) == self.process.pid:
                    found.append(int(entry.name))
            except OSError:
                pass
        return found

    def close(self) -> None:
        """End the VMM however it is, and remove its files."""
        try:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            shutil.rmtree(self.directory)


def refused(call: Call, vmm: Vmm) -> tuple[int, tuple[str, ...]]:
    """Return the status and the causes with which the VMM refuses."""
    with pytest.raises(VmmError) as caught:
        call(vmm.client)
    return caught.value.status, caught.value.causes


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


def is_running(pid: int) -> bool:
    """Whether a process runs, as more than a zombie that nobody has waited for."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
