# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils import ssh_proxy
from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils.ssh_proxy import HostConnection

TOLD = {
    "type": "ssh",
    "host": "hv1.example.com",
    "remote_user": "admin",
    "port": 2222,
    "private_key_file": "/keys/it's 100% mine",
    "host_key_checking": False,
    "ssh_args": "-C",
    "ssh_common_args": "-o 'ProxyCommand=ssh -W %h:%p bastion'",
    "ssh_extra_args": "",
}


def proxy_command(arguments: str) -> str | None:
    """Return the ProxyCommand in arguments, taken apart as Ansible does."""
    options = [argument for argument in shlex.split(arguments) if argument.startswith("ProxyCommand=")]
    return options[0].removeprefix("ProxyCommand=") if options else None


def test_the_host_s_own_connection_is_carried() -> None:
    command = proxy_command(ssh_proxy.guest_arguments(HostConnection.of("hv1", TOLD), "hv1", "web", jump=True))
    assert command is not None
    assert shlex.split(command) == [
        *("ssh", "-o", "BatchMode=yes", "-C", "-o", "ProxyCommand=ssh -W %%h:%%p bastion"),
        *("-o", "StrictHostKeyChecking=no", "-l", "admin", "-p", "2222", "-i", "/keys/it's 100%% mine"),
        *("-W", "[%h]:%p", "--", "hv1.example.com"),
    ]


def test_an_address_with_a_zone_is_no_token_of_ssh() -> None:
    connection = HostConnection.of("hv1", {"host": "fe80::1%eth0"})
    assert ssh_proxy.proxy_argv(connection)[-1] == "fe80::1%%eth0"


def test_what_is_not_told_is_left_to_ssh() -> None:
    connection = HostConnection.of("hv1", {})
    assert ssh_proxy.proxy_argv(connection) == ["ssh", "-o", "BatchMode=yes", "-W", "[%h]:%p", "--", "hv1"]


@pytest.mark.parametrize("kind", ["local", "ansible.builtin.local", "community.docker.docker"])
def test_no_jump_through_a_host_that_is_not_reached_over_ssh(kind: str) -> None:
    connection = HostConnection.of("hv1", {**TOLD, "type": kind})
    assert ssh_proxy.guest_arguments(connection, "hv1", "web", jump=True) == "-o HostKeyAlias=hv1/web"


def test_no_jump_where_none_is_wanted() -> None:
    connection = HostConnection.of("hv1", {**TOLD, "type": "ansible.builtin.ssh"})
    assert proxy_command(ssh_proxy.guest_arguments(connection, "hv1", "web", jump=False)) is None
    assert proxy_command(ssh_proxy.guest_arguments(connection, "hv1", "web", jump=True)) is not None


def test_two_guests_never_share_a_connection() -> None:
    paths = {ssh_proxy.control_path(host, name) for host in ("hv1", "hv2") for name in ("web", "db")}
    assert len(paths) == 4
    # Ansible fills in the directory; what is left is for ssh.
    assert all((path % {"directory": "/cp"}).endswith("-%p-%r") for path in paths)


PRINT_ARGUMENTS = """#!/usr/bin/env python3
import json, sys
print(json.dumps(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def fake_ssh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an ssh that prints its arguments."""
    directory = tmp_path_factory.mktemp("bin")
    (directory / "ssh").write_text(PRINT_ARGUMENTS)
    (directory / "ssh").chmod(0o755)
    return directory


# Nothing a shell, Ansible or ssh reads specially may come out other than it went in.
TEXT = st.text(st.sampled_from("ab %'\"\\$`;&|<>()*?#~!\n\té%h%p-="), min_size=1, max_size=12)


@given(user=TEXT, key=TEXT, argument=TEXT)
def test_every_value_arrives_as_it_was_given(fake_ssh: Path, user: str, key: str, argument: str) -> None:
    told = {**TOLD, "remote_user": user, "private_key_file": key, "ssh_extra_args": shlex.join(["-o", argument])}
    command = proxy_command(ssh_proxy.guest_arguments(HostConnection.of("hv1", told), "hv1", "web", jump=True))
    assert command is not None
    # ssh_config(5), TOKENS; then "exec" and a shell.
    for_shell = "%".join(part.replace("%h", "10.213.0.2").replace("%p", "22") for part in command.split("%%"))
    environment = {"PATH": f"{fake_ssh}:/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(["/bin/sh", "-c", f"exec {for_shell}"], capture_output=True, check=True, env=environment)
    arrived = json.loads(done.stdout)
    assert arrived[arrived.index("-l") + 1] == user
    assert arrived[arrived.index("-i") + 1] == key
    assert argument in arrived
    assert arrived[-4:] == ["-W", "[10.213.0.2]:22", "--", "hv1.example.com"]
