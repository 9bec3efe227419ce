# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: vsock
short_description: Run modules in a VM over ssh through its vsock
version_added: 0.2.0
author: The microvm.cloud_hypervisor developers (@microvm)
description:
  - Runs modules in a guest that needs no network at all. ssh goes through the VM's vsock, and where the hypervisor host is another
    machine, through ssh to that.
  - An ssh server must listen on a vsock port of the guest. systemd 256 and later has one on port 22 by itself. Before, a socket
    unit with C(ListenStream=vsock::22) and C(Accept=yes) for C(sshd -i) does it.
  - What is not an option here is as the connection plugin P(ansible.builtin.ssh#connection) has it by default.
extends_documentation_fragment:
  - microvm.cloud_hypervisor.guest
options:
  port:
    description: The vsock port of the guest's ssh server.
    type: int
    default: 22
    vars:
      - name: ansible_microvm_vsock_port
  remote_user:
    description: The user in the guest.
    type: str
    vars:
      - name: ansible_user
      - name: ansible_ssh_user
    ini:
      - section: defaults
        key: remote_user
    keyword:
      - name: remote_user
  private_key_file:
    description: The file with the private key for the guest.
    type: path
    vars:
      - name: ansible_private_key_file
      - name: ansible_ssh_private_key_file
    ini:
      - section: defaults
        key: private_key_file
    cli:
      - name: private_key_file
  host_key_checking:
    description:
      - Whether the guest's host key must be known. It is kept in the known hosts under the hypervisor host's and the VM's names.
    type: bool
    default: true
    vars:
      - name: ansible_host_key_checking
      - name: ansible_ssh_host_key_checking
    ini:
      - section: defaults
        key: host_key_checking
  ssh_common_args:
    description: Arguments of the ssh that goes to the guest.
    type: str
    default: ""
    vars:
      - name: ansible_ssh_common_args
  ssh_transfer_method:
    description: How files go to the guest, see O(ansible.builtin.ssh#connection:ssh_transfer_method).
    type: str
    choices: [sftp, scp, piped, smart]
    default: smart
    vars:
      - name: ansible_ssh_transfer_method
  pipelining:
    description: Whether modules go to the guest without a file of their own.
    type: bool
    default: false
    vars:
      - name: ansible_pipelining
      - name: ansible_ssh_pipelining
    ini:
      - section: defaults
        key: pipelining
"""

EXAMPLES = r"""
# In an inventory: a guest of a hypervisor host, reached without its network.
# vms:
#   hosts:
#     web:
#       ansible_connection: microvm.cloud_hypervisor.vsock
#       ansible_microvm_host: root@hv1.example.org
#       ansible_user: debian
"""

import shlex
from typing import Any

from ansible.plugins.connection import ConnectionBase
from ansible.plugins.loader import connection_loader

from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils import hypervisor_command

SAME = ("remote_user", "private_key_file", "host_key_checking", "ssh_transfer_method", "pipelining")


class Connection(ConnectionBase):
    """ansible.builtin.ssh, told of another way to the guest."""

    transport = "microvm.cloud_hypervisor.vsock"
    has_pipelining = True

    def __init__(self, play_context: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(play_context, *args, **kwargs)
        self._ssh = connection_loader.get("ansible.builtin.ssh", play_context)

    def set_become_plugin(self, plugin: Any) -> None:
        """Have ssh know how a user becomes another."""
        super().set_become_plugin(plugin)
        self._ssh.set_become_plugin(plugin)

    def _connect(self) -> Connection:
        if self._connected:
            return self
        vm, host = self.get_option("vm"), self.get_option("hypervisor")
        proxy = hypervisor_command.argv(
            self.get_option("hypervisor_command"),
            ["vsock", vm, str(self.get_option("port"))],
            host=host,
            ssh_args=self.get_option("hypervisor_ssh_args"),
        )
        # ssh reads its own tokens in it (ssh_config(5), TOKENS), and hands it to a shell.
        command = shlex.join(proxy).replace("%", "%%")
        # Two hosts may each have a VM of this name: neither their keys nor their open connections are to meet.
        name = f"{vm}.{host.rpartition('@')[2] or 'localhost'}"
        arguments = ["-o", f"ProxyCommand={command}", "-o", f"HostKeyAlias={name}"]
        options = {option: self.get_option(option) for option in SAME}
        given = self.get_option("ssh_common_args")
        self._ssh.set_options(
            direct={**options, "host": name, "ssh_common_args": f"{shlex.join(arguments)} {given}".strip()}
        )
        self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run a command in the guest."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        return self._ssh.exec_command(cmd, in_data=in_data, sudoable=sudoable)

    def put_file(self, in_path: str, out_path: str) -> None:
        """Send a file to the guest."""
        super().put_file(in_path, out_path)
        self._ssh.put_file(in_path, out_path)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Fetch a file from the guest."""
        super().fetch_file(in_path, out_path)
        self._ssh.fetch_file(in_path, out_path)

    def reset(self) -> None:
        """End the connection that ssh keeps open."""
        self._connect()
        self._ssh.reset()

    def close(self) -> None:
        """Let go of the guest."""
        self._ssh.close()
        self._connected = False
