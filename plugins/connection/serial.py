# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: serial
short_description: Run modules in a VM over its serial port
version_added: 0.2.0
author: The microvm.cloud_hypervisor developers (@microvm)
description:
  - Runs modules in a guest that needs neither a network nor a server, only a root shell on its serial port that asks for no login, such
    as C(agetty --autologin root). The VM's O(microvm.cloud_hypervisor.ch_vm#module:serial) has the mode V(pty) or V(socket).
  - The port is slow, some ten to a hundred kilobytes a second. Modules other than M(ansible.builtin.raw) need Python in the guest.
  - Nobody else can be attached to the port meanwhile. The shell is left as it was found.
  - Where the hypervisor host is another machine, it is reached over ssh.
extends_documentation_fragment:
  - microvm.cloud_hypervisor.guest
options:
  line:
    description: The serial port, or the virtio console, whose mode is V(pty) then.
    type: str
    choices: [serial, console]
    default: serial
    vars:
      - name: ansible_microvm_line
  timeout:
    description: How many seconds may pass until the shell answers. A guest that still boots is waited for.
    type: int
    default: 60
    vars:
      - name: ansible_microvm_timeout
"""

EXAMPLES = r"""
# In an inventory: a guest of this machine, and one of another hypervisor host.
# vms:
#   hosts:
#     web:
#       ansible_connection: microvm.cloud_hypervisor.serial
#     db:
#       ansible_connection: microvm.cloud_hypervisor.serial
#       ansible_microvm_host: admin@hv1.example.org
#       ansible_microvm_command: sudo microvm

- name: Say what is wrong with the guest's network
  hosts: web
  gather_facts: false
  tasks:
    - name: Ask for its addresses
      ansible.builtin.raw: ip address
      changed_when: false
"""

import contextlib
import os
import select
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.plugins.connection import ConnectionBase

from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils import hypervisor_command
from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils.serial_shell import SerialError, SerialShell


class Program:
    """A line behind a program's standard input and output."""

    def __init__(self, argv: list[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the line has ended
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True
        )

    def read(self, seconds: float) -> bytes:
        """See serial_shell.Channel."""
        output = self._process.stdout
        if output is None or not select.select([output], [], [], seconds)[0]:
            return b""
        data = os.read(output.fileno(), 65536)
        if not data:
            raise SerialError(f"the line has ended; {self._complaint()}")
        return data

    def write(self, data: bytes) -> None:
        """See serial_shell.Channel."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(data)
                self._process.stdin.flush()
        except OSError as error:
            raise SerialError(f"the line has ended; {self._complaint()}") from error

    def _complaint(self) -> str:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        return f"it said: {said}" if said else "it said nothing"

    def close(self) -> None:
        """End the program."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()


class Connection(ConnectionBase):
    """A shell on a guest's serial port."""

    transport = "microvm.cloud_hypervisor.serial"
    has_pipelining = True
    has_tty = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._program: Program | None = None
        self._shell_there: SerialShell | None = None

    def _connect(self) -> Connection:
        if self._connected:
            return self
        argv = hypervisor_command.argv(
            self.get_option("hypervisor_command"),
            ["console", self.get_option("vm"), "--pipe", "--line", self.get_option("line")],
            host=self.get_option("hypervisor"),
            ssh_args=self.get_option("hypervisor_ssh_args"),
        )
        try:
            self._program = Program(argv)
            self._shell_there = SerialShell(self._program)
            self._shell_there.open(self.get_option("timeout"))
        except (SerialError, OSError) as error:
            self.close()
            raise AnsibleConnectionFailure(f"VM '{self.get_option('vm')}': {error}") from error
        self._connected = True
        return self

    def _there(self) -> SerialShell:
        self._connect()
        if self._shell_there is None:
            raise AnsibleConnectionFailure("the serial line is closed")
        return self._shell_there

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run a command in the guest."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        try:
            return self._there().execute(cmd, in_data)
        except SerialError as error:
            raise AnsibleConnectionFailure(f"VM '{self.get_option('vm')}': {error}") from error

    def put_file(self, in_path: str, out_path: str) -> None:
        """Send a file to the guest."""
        super().put_file(in_path, out_path)
        if not os.path.exists(in_path):
            raise AnsibleFileNotFound(f"'{in_path}' is not there")
        try:
            self._there().put(Path(in_path).read_bytes(), out_path)
        except SerialError as error:
            raise AnsibleError(f"VM '{self.get_option('vm')}': {error}") from error

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Fetch a file from the guest."""
        super().fetch_file(in_path, out_path)
        try:
            Path(out_path).write_bytes(self._there().get(in_path))
        except SerialError as error:
            raise AnsibleError(f"VM '{self.get_option('vm')}': {error}") from error

    def close(self) -> None:
        """Leave the guest's shell, and the line."""
        if self._shell_there is not None:
            with contextlib.suppress(SerialError):
                self._shell_there.close()
        if self._program is not None:
            self._program.close()
        self._program = self._shell_there = None
        self._connected = False
