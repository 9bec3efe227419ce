# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way over ssh to a VM through its host. Pure."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class HostConnection:
    """How Ansible connects to a hypervisor host: what its ssh connection plugin was given.

    ``arguments`` are the host's ``ssh_args``, ``ssh_common_args`` and ``ssh_extra_args``, as one list.
    """

    over_ssh: bool
    address: str
    user: str | None
    port: int | None
    key: str | None
    check_host_key: bool
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, host: str, told: Mapping[str, Any]) -> HostConnection:
        """Return the connection to ``host`` from ``told``: the options by their names in the connection plugin ssh."""
        given = (shlex.split(told.get(name) or "") for name in ("ssh_args", "ssh_common_args", "ssh_extra_args"))
        return cls(
            over_ssh=str(told.get("type") or "ssh").rpartition(".")[2] == "ssh",
            address=told.get("host") or host,
            user=told.get("remote_user") or None,
            port=int(told["port"]) if told.get("port") else None,
            key=told.get("private_key_file") or None,
            check_host_key=bool(told.get("host_key_checking", True)),
            arguments=tuple(argument for arguments in given for argument in arguments),
        )


def proxy_argv(connection: HostConnection) -> list[str]:
    """Return the command that joins its standard input and output to the guest's port, by way of its host.

    It holds ssh's tokens (ssh_config(5), TOKENS) for the guest. ProxyJump would not do: it takes a user and a port, but
    neither a key nor any other option of the host's own connection.
    """
    # With a terminal nowhere near, a question would wait for ever.
    argv = ["ssh", "-o", "BatchMode=yes", *connection.arguments]
    if not connection.check_host_key:
        argv += ["-o", "StrictHostKeyChecking=no"]
    if connection.user is not None:
        argv += ["-l", connection.user]
    if connection.port is not None:
        argv += ["-p", str(connection.port)]
    if connection.key is not None:
        argv += ["-i", connection.key]
    escaped = [argument.replace("%", "%%") for argument in (*argv, connection.address)]
    return [*escaped[:-1], "-W", "[%h]:%p", "--", escaped[-1]]


def guest_arguments(connection: HostConnection, host: str, name: str, *, jump: bool) -> str:
    """Return a guest's ``ansible_ssh_common_args``, quoted as Ansible's ssh connection plugin splits them."""
    # Guests of two hosts can have one address; what known_hosts knows must be each one's own.
    arguments = ["-o", f"HostKeyAlias={host}/{name}"]
    if jump and connection.over_ssh:
        # ssh hands the command to a shell, with "exec" before it.
        arguments += ["-o", f"ProxyCommand={shlex.join(proxy_argv(connection))}"]
    return shlex.join(arguments)


def control_path(host: str, name: str) -> str:
    """Return a guest's ``ansible_control_path``: the socket of the connection that ssh keeps open.

    Ansible's own is named by address, port and user alone. With one address on two hosts, commands for the guest of one
    would go to that of the other, without a word.
    """
    digest = hashlib.sha256(f"{host}/{name}".encode()).hexdigest()[:10]
    return f"%(directory)s/{digest}-%%p-%%r"
