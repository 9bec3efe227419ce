# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Taking a host back leaves nothing of it."""

from __future__ import annotations

from typing import Any

from conftest import METRICS, Node


def test_the_role_takes_back_what_it_made(bare: Node, role_variables: dict[str, Any]) -> None:
    watched = "ls -d /usr/local/bin/* /usr/local/lib/microvm* /etc/systemd/system/microvm* /etc/*.d/*microvm* /var/lib/microvm*"
    watched += f" {METRICS}/microvm.prom"
    bare.role(**role_variables)
    bare.ssh("systemctl start microvm-metrics.service")
    assert "/usr/local/bin/microvm" in bare.ssh(watched, check=False).stdout
    bare.role(**role_variables, host_state="absent")
    assert bare.ssh(watched, check=False).stdout == ""
    assert bare.ssh("systemctl cat microvm@x", check=False).returncode != 0
    assert bare.out("systemctl list-units --all --plain --no-legend 'microvm*'") == ""
    assert "changed=0 " in bare.role(**role_variables, host_state="absent")
