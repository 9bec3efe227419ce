# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Devices that a Linux guest gets and lets go of while it runs. It boots in the stand-in, wherever that is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vm_host import RUNNER, STAND_IN, Host

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import tap, vm_live

SMALL_GUEST = Path(os.environ.get("MICROVM_CACHE", "/nonexistent")) / "small_guest"
pytestmark = pytest.mark.skipif(not (SMALL_GUEST / "vmlinuz").exists(), reason="no small guest; 'make guest' builds it")
TAPS = ["uptap-2", "uptap-3"]


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(vm_live, "UNPLUG_SECONDS", 90.0)
    root = tmp_path_factory.mktemp("linux")
    host = Host(root / "state", root / "run", str(STAND_IN), SMALL_GUEST / "vmlinuz")
    yield host
    host.ensure("web", state="absent", by_name=True, grace=0)
    for name in TAPS:
        tap.remove(RUNNER, name)


def test_devices_come_go_and_are_plugged_anew(host: Host) -> None:
    def disk(name: str, **options: Any) -> dict[str, Any]:
        path = host.state_dir.parent / f"{name}.raw"
        with path.open("ab") as file:
            file.truncate(1 << 20)
        return {"id": name, "path": str(path), "image_type": "raw", **options}

    one, two = ({"tap": name, "mac": f"02:63:00:00:01:0{number}"} for number, name in enumerate(TAPS))
    machine: dict[str, Any] = {
        "payload": {
            "kernel": str(host.payload),
            "initramfs": str(SMALL_GUEST / "initramfs"),
            "cmdline": "console=ttyS0 quiet mitigations=off nokaslr",
        },
        "memory": {"size": "160MiB"},
        "wait_for": {"serial": "small-guest: ready", "timeout": 180},
    }

    def ask(**options: Any) -> Any:
        return host.ensure("web", **machine, **options)

    root, data = disk("root"), disk("data")
    pid = ask(disks=[root], nets=[one]).facts["pid"]
    came = ask(disks=[root, data], nets=[one, two])
    assert came.actions[1:] == ("plugged in data", "plugged in net1")
    assert tap.has_carrier(TAPS[1])

    anew = ask(disks=[root, {**data, "serial": "new"}], nets=[one, two], replug=True)
    assert anew.actions[1:] == ("unplugged data", "plugged in data")
    assert anew.facts["restart_reasons"] == []
    assert host.info("web")["config"]["disks"][1]["serial"] == "new"

    gone = ask(disks=[root], nets=[one])
    assert gone.actions[1:] == ("unplugged data", "unplugged net1")
    assert (tap.exists(TAPS[0]), tap.exists(TAPS[1])) == (True, False)
    again = ask(disks=[root], nets=[one])
    assert (again.changed, again.facts["restart_reasons"], again.facts["pid"]) == (False, [], pid)
