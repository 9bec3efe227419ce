# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import migration_trust
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_config import Spec
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths

KEY = "ssh-ed25519 " + "A" * 68 + " microvm-migration-web"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.of("web", state_dir=tmp_path / "state", run_dir=tmp_path / "run")


@pytest.fixture
def offer(paths: Paths) -> dict[str, Any]:
    """What an honest host offers."""
    root, store = str(paths.state / "root.raw"), paths.state_dir / "images"
    return {
        "name": "web",
        "record": {
            "name": "web",
            "payload": {"kernel": str(store / "kernel"), "cmdline": "root=/dev/vda", "initramfs": None},
            "disks": [{"id": "root", "path": root, "image_type": "raw", "readonly": None}],
            "nets": [{"tap": "chtap0", "mac": "02:63:00:00:00:01"}],
            "vmm": "/opt/cloud-hypervisor",
            "restart_limit": {"burst": 3, "seconds": None},
            "memory": {"size": "256MiB", "hotplug_method": None},
        },
        "vmm_version": "53.0.0",
        "net": [{"tap": "chtap0", "host_mac": "02:63:00:00:00:02"}],
        "copied": [{"path": root, "size": 1, "allocated": 1}],
        "shared": [],
        "backing": [],
        "files": {str(store / "kernel"): 1},
        "probes": [],
        "state": "running",
        "ready": [],
        "public_key": KEY,
    }


def take(offer: dict[str, Any], paths: Paths, *directories: str, **item: Any) -> tuple[dict[str, Any], Spec]:
    options = migration_trust.options(offer, {"name": "web", **item})
    return options, migration_trust.spec(options, offer, paths, directories)


def forged(offer: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """Return an offer with something else at a place such as ``record.disks.0.path``."""
    result = copy.deepcopy(offer)
    place: Any = result
    *parts, last = (int(part) if part.isdigit() else part for part in where.split("."))
    for part in parts:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    place[last] = value
    return result


def test_an_honest_offer_is_taken_with_what_is_this_hosts_own(offer: dict[str, Any], paths: Paths) -> None:
    options, spec = take(offer, paths, unit="microvm")
    theirs = {key: value for key, value in offer["record"].items() if key != "vmm"}
    assert options == {**theirs, "unit": "microvm"}
    assert spec.vmm == "cloud-hypervisor"
    assert [tap.mac for tap in spec.taps] == ["02:63:00:00:00:02"]
    assert take(offer, paths, vmm="/usr/bin/cloud-hypervisor")[1].vmm == "/usr/bin/cloud-hypervisor"
    assert take(forged(offer, "record.supervisor", "process"), paths)[0].get("supervisor") is None


@pytest.mark.parametrize(
    ("where", "value", "option"),
    [
        ("record.payload.kernel", "/etc/shadow", "payload.kernel"),
        ("record.payload.initramfs", "/etc/shadow", "payload.initramfs"),
        ("record.payload.kernel", "{state}/images/../../secret", "payload.kernel"),
        ("record.payload.kernel", "etc/shadow", "payload.kernel"),
        ("record.rng", {"src": "/etc/shadow"}, "rng.src"),
        ("record.serial", {"mode": "file", "file": "/etc/cron.d/x"}, "serial.file"),
        ("record.console", {"mode": "file", "file": "{state}/vms/other/serial.log"}, "console.file"),
        ("record.console", {"mode": "file", "file": "{state}/images/base.raw"}, "console.file"),
        ("record.tpm", {"socket": "/run/dbus/system_bus_socket"}, "tpm.socket"),
        ("record.nets.0", {"vhost_socket": "/run/other.sock"}, "nets.vhost_socket"),
        (
            "record.memory",
            {"size": "0", "zones": [{"id": "z", "size": "1MiB", "file": "/dev/mem"}]},
            "memory.zones.file",
        ),
        ("record.landlock_rules", [{"path": "/etc", "access": "rw"}], "landlock_rules.path"),
        ("backing", ["/etc/shadow"], "disks.backing_files"),
        ("record.devices", [{"path": "/sys/bus/pci/devices/0000:00:01.0"}], "devices"),
        ("record.fs", [{"tag": "x", "socket": "/run/x"}], "fs"),
        ("probes", ["/etc/shadow"], "offer"),
        ("net.0.host_mac", "address 1", "mac"),
        ("record.nets.0.tap", "x; reboot", "nets.tap"),
    ],
)
def test_what_leads_elsewhere_is_refused(
    offer: dict[str, Any], paths: Paths, where: str, value: Any, option: str
) -> None:
    value = json.loads(json.dumps(value).replace("{state}", str(paths.state_dir)))
    with pytest.raises(MicrovmError) as refused:
        take(forged(offer, where, value), paths)
    assert refused.value.option == option


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("name", "db"),
        ("record.name", "db"),
        ("record.restart", "no\nExecStartPre=+/bin/sh -c reboot"),
        ("record.restart_limit.burst", "3\n"),
        ("record.restart_limit.burst", "3"),
        ("record.limits", {"cpu_weight": "1\nUser=root"}),
        ("record.boot_timeout", "1"),
        ("record.grace", 1.5),
        ("record.unheard_of", 1),
        ("record.disks", "x"),
        ("record.payload.kernel", "$HOME/x"),
        ("copied", [{"path": "/x", "size": "1", "allocated": 1}]),
        ("copied", None),
        ("copied", [{"path": "/x"}]),
        ("shared", [None]),
        ("files", ["/etc/shadow"]),
        ("state", "stopped"),
        ("vmm_version", 53),
    ],
)
def test_what_ch_vm_would_not_have_put_on_record_is_refused(
    offer: dict[str, Any], paths: Paths, where: str, value: Any
) -> None:
    with pytest.raises(MicrovmError) as refused:
        take(forged(offer, where, value), paths)
    assert refused.value.option == "offer"


def disk(offer: dict[str, Any], path: str, *, copied: bool) -> dict[str, Any]:
    """Return an offer of a VM with this disk."""
    offer = forged(offer, "record.disks.0.path", path)
    return {
        **offer,
        "copied": [{"path": path, "size": 1, "allocated": 1}] if copied else [],
        "shared": [] if copied else [path],
    }


@pytest.mark.parametrize("name", ["vm.json", "moving.json", "life.json", ".migration"])
def test_a_record_is_no_disk(offer: dict[str, Any], paths: Paths, name: str) -> None:
    with pytest.raises(MicrovmError, match="is the name of a record, not of a disk"):
        take(disk(offer, str(paths.state / name), copied=True), paths)


def test_disks_elsewhere_are_for_directories_that_are_allowed(
    offer: dict[str, Any], paths: Paths, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    inside = disk(offer, str(shared / "web.raw"), copied=False)
    with pytest.raises(MicrovmError, match=r"web.raw' lies in none of .* allow its directory by 'directories'"):
        take(inside, paths)
    take(inside, paths, str(shared))
    (shared / "link.raw").symlink_to("/etc/shadow")
    with pytest.raises(MicrovmError, match="link.raw', which leads to '/etc/shadow', lies in none"):
        take(disk(offer, str(shared / "link.raw"), copied=False), paths, str(shared))
    for elsewhere in ("/etc/shadow", f"{shared}/../secret", str(paths.state.parent / "db/root.raw")):
        with pytest.raises(MicrovmError, match="lies in none of"):
            take(disk(offer, elsewhere, copied=False), paths, str(shared))


def test_where_this_process_is_does_not_matter(
    offer: dict[str, Any], paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.state.mkdir(parents=True)
    monkeypatch.chdir(paths.state)
    with pytest.raises(MicrovmError, match="option 'rng.src': 'etc/shadow'"):
        take(forged(offer, "record.rng", {"src": "etc/shadow"}), paths)


def test_an_image_in_the_store_is_not_written_to(offer: dict[str, Any], paths: Paths) -> None:
    base = disk(offer, str(paths.state_dir / "images/base.raw"), copied=False)
    with pytest.raises(MicrovmError, match=r"option 'disks.path': .*base.raw' lies in none of"):
        take(base, paths)
    take(forged(base, "record.disks.0.readonly", value=True), paths)


def test_what_is_copied_are_the_disks_on_record(offer: dict[str, Any], paths: Paths) -> None:
    more = [*offer["copied"], {"path": str(paths.state / "more.raw"), "size": 1, "allocated": 1}]
    for copied in ([], more):
        with pytest.raises(MicrovmError, match="is among the disks on record or those that the VM runs with"):
            take({**offer, "copied": copied}, paths)


def test_another_vms_tap_is_not_taken(offer: dict[str, Any], paths: Paths) -> None:
    other = Paths.of("db", state_dir=paths.state_dir, run_dir=paths.run.parent)
    other.state.mkdir(parents=True)
    other.record.write_text(json.dumps({"options": {}, "config": {"net": [{"tap": "chtap0"}]}}))
    with pytest.raises(MicrovmError, match="the TAP chtap0 is that of VM 'db' here"):
        take(offer, paths)
