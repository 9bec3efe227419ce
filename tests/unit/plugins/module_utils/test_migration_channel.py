# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import migration_channel
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.migration_channel import Channel
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths

PUBLIC = "ssh-ed25519 " + "A" * 68 + " microvm-migration-web"
UNTIL = time.struct_time((2026, 11, 25, 1, 2, 3, 0, 0, 0))


def test_a_key_can_do_one_thing_for_a_while() -> None:
    line = migration_channel.authorized_key(PUBLIC, 'sudo -n "microvm" receive web', until=UNTIL)
    assert line == f'command="sudo -n \\"microvm\\" receive web",expiry-time="20261125010203",restrict {PUBLIC}'


@pytest.mark.parametrize(
    "key",
    [
        f"{PUBLIC}\nssh-ed25519 B",
        f"{PUBLIC}\n",
        f'no-restrict,command="x" {PUBLIC}',
        f"{PUBLIC} and more",
        PUBLIC.replace("migration-web", "migration-WEB"),
        "ssh-rsa AAAA microvm-migration-web",
        "",
    ],
)
def test_what_is_not_such_a_key_is_refused(key: str) -> None:
    with pytest.raises(MicrovmError, match="is no key such as state=offered makes"):
        migration_channel.authorized_key(key, "x", until=UNTIL)


def test_a_command_is_one_line() -> None:
    with pytest.raises(MicrovmError, match="is no key"):
        migration_channel.authorized_key(PUBLIC, "x\ny", until=UNTIL)


def test_only_the_host_with_the_key_is_spoken_to(tmp_path: Path) -> None:
    paths = Paths.of("web", state_dir=tmp_path, run_dir=tmp_path)
    (tmp_path / "vms/web/.migration").mkdir(parents=True)
    argv = Channel(paths, "2001:db8::1", "-oProxyCommand=x", 2222, "ssh-ed25519 AAAA").argv()
    assert argv[-3:] == ["--", "-oProxyCommand=x@2001:db8::1", "guest"], "what comes behind -- is no option"
    assert {"StrictHostKeyChecking=yes", "HostKeyAlias=migration", "IdentitiesOnly=yes"} <= set(argv)
    assert (tmp_path / "vms/web/.migration/known_hosts").read_text() == "migration ssh-ed25519 AAAA\n"


def test_a_second_key_of_the_other_host_is_refused(tmp_path: Path) -> None:
    channel = Channel(
        Paths.of("web", state_dir=tmp_path, run_dir=tmp_path), "h2", "root", 22, "ssh-ed25519 A\n@revoked *"
    )
    with pytest.raises(MicrovmError, match="option 'host_key': a host's key is one line"):
        channel.argv()
