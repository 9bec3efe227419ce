# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_arrival
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

AGREED: dict[str, Any] = {
    "payload": {"kernel": "/store/vmlinuz", "cmdline": "/bin/init"},
    "disks": [{"id": "root", "path": "/vms/web/root.raw"}],
    "net": [{"id": "net0", "tap": "chtap0"}],
    "serial": {"mode": "Pty"},
    "rng": {"src": "/dev/urandom"},
}


def test_what_the_vmm_adds_by_itself_is_no_surprise() -> None:
    own = {"serial": {"mode": "Pty", "file": "/dev/pts/3"}, "landlock_rules": [{"path": "/vms/web", "access": "rw"}]}
    vm_arrival.check({**AGREED, **own, "console": {"mode": "Off", "file": None}}, AGREED)


@pytest.mark.parametrize(
    ("option", "forged"),
    [
        ("disks.path", {"disks": [*AGREED["disks"], {"id": "x", "path": "/etc/shadow"}]}),
        ("payload.initramfs", {"payload": {"kernel": "/store/vmlinuz", "initramfs": "/etc/shadow"}}),
        ("console.file", {"console": {"mode": "File", "file": "etc/cron.d/x"}}),
        ("rng.src", {"rng": {"src": "/etc/shadow"}}),
        ("fs.socket", {"fs": [{"tag": "x", "socket": "/run/other.sock"}]}),
        ("devices.path", {"devices": [{"path": "/sys/bus/pci/devices/0000:00:01.0"}]}),
        ("memory.zones.file", {"memory": {"zones": [{"id": "x", "file": "/dev/mem"}]}}),
        ("nets.tap", {"net": [{"tap": "chtap1"}]}),
    ],
)
def test_what_was_not_agreed_on_is_refused(option: str, forged: dict[str, Any]) -> None:
    with pytest.raises(MicrovmError, match=rf"option '{option}': the guest came with .*, of which nothing was said"):
        vm_arrival.check({**AGREED, **forged}, AGREED)
