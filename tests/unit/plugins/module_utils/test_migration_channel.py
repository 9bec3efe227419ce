# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import migration_channel
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.migration_channel import Channel
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths


def test_a_key_can_do_one_thing() -> None:
    line = migration_channel.authorized_key("ssh-ed25519 AAAA x", 'sudo -n "microvm" receive web')
    assert line == 'command="sudo -n \\"microvm\\" receive web",restrict ssh-ed25519 AAAA x'


@pytest.mark.parametrize(("key", "command"), [("ssh-ed25519 AAAA\nssh-rsa B", "x"), ("ssh-ed25519 AAAA", "x\ny")])
def test_a_second_line_is_refused(key: str, command: str) -> None:
    with pytest.raises(MicrovmError, match="one line each"):
        migration_channel.authorized_key(key, command)


def test_only_the_host_with_the_key_is_spoken_to(tmp_path: Path) -> None:
    paths = Paths.of("web", state_dir=tmp_path, run_dir=tmp_path)
    (tmp_path / "vms/web/.migration").mkdir(parents=True)
    argv = Channel(paths, "2001:db8::1", "-oProxyCommand=x", 2222, "ssh-ed25519 AAAA").argv("memory")
    assert argv[-3:] == ["--", "-oProxyCommand=x@2001:db8::1", "memory"], "what comes behind -- is no option"
    assert {"StrictHostKeyChecking=yes", "HostKeyAlias=migration", "IdentitiesOnly=yes"} <= set(argv)
    assert (tmp_path / "vms/web/.migration/known_hosts").read_text() == "migration ssh-ed25519 AAAA\n"
