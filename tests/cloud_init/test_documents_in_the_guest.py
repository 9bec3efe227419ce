# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role's templates make of entries, held against the cloud-init and netplan of the cloud image itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils import compose

Json = dict[str, Any]
TREE = Path(os.environ["MICROVM_CACHE"]) / "cloud_guest" / "tree"
CHECKOUT = Path(__file__).parents[2]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJs0 me@example.com"
AWKWARD = 'it\'s "quoted": # & costs $5 \\ {}\n\ttab, ünïcode, %s\n'
DEPLOY = {"name": "deploy", "sudo": "ALL=(ALL) NOPASSWD:ALL", "ssh_authorized_keys": [KEY], "lock_passwd": True}
DATA = [{"name": "main", "size": "1GiB", "mount": "/mnt/data"}]

LEASE = {"mac": "02:63:0a:d5:00:02", "address": "10.213.0.2", "prefix": 30, "host_address": "10.213.0.1"}
LEASE6 = {"address6": "fd00:1::2", "prefix6": 126, "host_address6": "fd00:1::1"}

# What an entry may say, each part for itself; the last entry says all of it.
PARTS: dict[str, Json] = {
    "nothing": {},
    "name": {"hostname": "www", "instance_id": "2026-11"},
    "fqdn": {"hostname": "www.example.com"},
    "ssh-keys": {"ssh_keys": [KEY, KEY]},
    "users": {"users": [DEPLOY]},
    "default-user": {"users": ["default", DEPLOY], "ssh_keys": [KEY]},
    "timezone": {"timezone": "Europe/Vienna"},
    "packages": {"packages": ["curl", ["nginx", "1.22.1-9"]]},
    "files": {"write_files": [{"path": "/etc/app.conf", "content": AWKWARD, "permissions": "0600", "append": True}]},
    "commands": {"runcmd": [["echo", AWKWARD], "echo a shell's | cat"]},
    "data": {"data": DATA},
    "many-disks": {
        "data": [
            *DATA,
            {"name": "below", "size": "1GiB", "mount": "/mnt/data/below", "fstype": "xfs"},
            {"name": "fifteen-letters", "size": "1GiB", "mount": "/var/lib/x", "fstype": "btrfs"},
            {"name": "bare", "size": "1GiB"},
        ]
    },
    "service": {"service": {"binary": "x"}, "grace": 120},
    "service-user": {"service": {"binary": "x", "user": "web", "group": "www"}, "data": DATA},
    "service-and-data": {"service": {"binary": "x"}, "data": DATA},
    "extra": {"user_data_extra": {"ntp": {"enabled": True, "servers": ["192.0.2.1"]}, "runcmd": ["true"], "swap": {}}},
    "address6": {"lease": LEASE6},
    "dns": {"dns": ["192.0.2.53", "2001:db8::53"], "lease": LEASE6},
}
# The entries of the example that users begin with, without the values that are theirs.
EXAMPLE = yaml.safe_load(
    re.sub(r"\{\{.*?\}\}", "theirs", (CHECKOUT / "examples/cloud_image/inventory.yml").read_text())
)["hypervisors"]["vars"]
ENTRIES: dict[str, Json] = {
    **PARTS,
    **{f"example-{entry['name']}": {**EXAMPLE["vm_defaults"], **entry} for entry in EXAMPLE["vm_instances"]},
    "everything": {key: value for part in PARTS.values() for key, value in part.items()},
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The documents of all entries, by their names, rendered as the role does it."""
    place = tmp_path_factory.mktemp("play")
    (place / "templates").symlink_to(CHECKOUT / "roles/vm/templates")
    leases = {name: {**LEASE, **part.get("lease", {})} for name, part in ENTRIES.items()}
    instances = [{**part, "name": name} for name, part in ENTRIES.items()]
    vms = compose.entries(({key: value for key, value in entry.items() if key != "lease"} for entry in instances), {})
    documents = "{{ lookup('microvm.cloud_hypervisor.cidata', vms, leases=leases) | to_json }}"
    task = {"ansible.builtin.copy": {"content": documents, "dest": str(place / "documents.json")}}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}
    play["vars"] = {"vms": vms, "leases": leases}
    (place / "play.yml").write_text(json.dumps([play]))
    argv = [Path(sys.executable).parent / "ansible-playbook", "play.yml"]
    done = subprocess.run(argv, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rendered: dict[str, dict[str, str]] = json.loads((place / "documents.json").read_text())
    return rendered


@pytest.fixture
def in_guest(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program of the guest, which finds ``tmp_path`` as its /mnt."""

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        inside = 'mount --bind "$1" "$2/mnt"; tree=$2; shift 2; exec chroot "$tree" "$@"'
        command = ["unshare", "--mount", "sh", "-ec", inside, "sh", str(tmp_path), str(TREE), *argv]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def _networkd(in_guest: Callable[..., subprocess.CompletedProcess[str]], place: Path, network_config: str) -> str:
    """Return what the guest's networkd would read, by way of its cloud-init and its netplan."""
    (place / "network-config").write_text(network_config)
    convert = ["cloud-init", "devel", "net-convert", "--network-data", "/mnt/network-config", "--kind", "yaml"]
    converted = in_guest(*convert, "--directory", "/mnt/root", "--distro", "debian", "--output-kind", "netplan")
    assert converted.returncode == 0, converted.stdout + converted.stderr
    # Not all releases do this themselves, and netplan warns of it.
    (place / "root/etc/netplan/50-cloud-init.yaml").chmod(0o600)
    generated = in_guest("netplan", "generate", "--root-dir", "/mnt/root")
    assert generated.returncode == 0 and not generated.stderr, generated.stderr
    (unit,) = (place / "root/run/systemd/network").glob("*.network")
    return unit.read_text()


@pytest.mark.parametrize("name", ENTRIES)
def test_cloud_init_takes_the_user_data(name, documents, in_guest, tmp_path) -> None:
    (tmp_path / "user-data").write_text(documents[name]["user_data"])
    done = in_guest("cloud-init", "schema", "--config-file", "/mnt/user-data")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deprecat" not in (done.stdout + done.stderr).lower()


def test_the_schema_is_looked_at(in_guest, tmp_path) -> None:
    (tmp_path / "user-data").write_text('#cloud-config\n{"mounts": [["/dev/vdb", 5, {}]]}')
    done = in_guest("cloud-init", "schema", "--config-file", "/mnt/user-data")
    assert done.returncode != 0
    assert "mounts" in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["nothing", "address6", "dns", "everything"])
def test_netplan_takes_the_network_config(name, documents, in_guest, tmp_path) -> None:
    lines = _networkd(in_guest, tmp_path, documents[name]["network_config"]).splitlines()
    assert {"MACAddress=02:63:0a:d5:00:02", "PermanentMACAddress=02:63:0a:d5:00:02"} & set(lines)
    assert {"LinkLocalAddressing=no", "IPv6AcceptRA=no", "Address=10.213.0.2/30", "Gateway=10.213.0.1"} <= set(lines)
    six = {"Address=fd00:1::2/126", "Gateway=fd00:1::1"}
    assert six & set(lines) == (six if "lease" in ENTRIES[name] else set())
    assert [line for line in lines if line.startswith("DNS=")] == [f"DNS={dns}" for dns in ENTRIES[name].get("dns", [])]


def test_netplan_looks_at_the_addresses(in_guest, tmp_path) -> None:
    wrong = {
        "version": 2,
        "ethernets": {"uplink": {"match": {"macaddress": LEASE["mac"]}, "addresses": ["10.0.0.0.1/8"]}},
    }
    with pytest.raises(AssertionError, match=r"10\.0\.0\.0\.1"):
        _networkd(in_guest, tmp_path, json.dumps(wrong))


@pytest.mark.parametrize("name", ENTRIES)
def test_meta_data(name, documents) -> None:
    entry = {**ENTRIES[name], "name": name}
    assert json.loads(documents[name]["meta_data"]) == {
        "instance-id": entry.get("instance_id", name),
        "local-hostname": entry.get("hostname", name),
    }
