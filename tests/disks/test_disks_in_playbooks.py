# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whole runs of ansible-playbook: what is sent to the host, what is shown, and what is left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(sys.executable).parent


class Controller:
    """A playbook's directory, with a binary that all VMs share and a keystore for each, one key of it encrypted."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.state_dir = place / "state"
        self.remote_tmp = place / "remote"
        (place / "base.raw").write_bytes(bytes(1 << 20))
        (place / "password").write_text("vaulted")
        (place / "files").mkdir()
        (place / "files" / "server").write_bytes(os.urandom(300_000))
        for name in ("web", "db"):
            keys = place / "files" / "keys" / name / "tls"
            keys.mkdir(parents=True)
            (keys / "key.pem").write_text(f"KEYSECRET of {name}")
            (keys / "old.pem").write_text("KEYSECRET of long ago")
        self.tool("ansible-vault", "encrypt", str(place / "files/keys/web/tls/key.pem"))

    def tool(self, program: str, *argv: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "ANSIBLE_REMOTE_TMP": str(self.remote_tmp),
            "ANSIBLE_VAULT_PASSWORD_FILE": str(self.place / "password"),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_NOCOLOR": "1",
        }
        argv = (str(PROGRAMS / program), *argv)
        return subprocess.run(argv, cwd=self.place, env=environment, capture_output=True, text=True, check=False)

    def run(self, options: dict[str, Any], *flags: str) -> tuple[dict[str, Any], str]:
        """Run one task, and return its result and all that was shown."""
        shared = {"image": str(self.place / "base.raw"), "root": {"mode": "copy"}, "state_dir": str(self.state_dir)}
        tasks = [
            {"microvm.cloud_hypervisor.ch_disks": shared | options, "register": "made", "ignore_errors": True},
            {
                "ansible.builtin.copy": {"content": "{{ made | to_json }}", "dest": str(self.place / "result.json")},
                "check_mode": False,
                "diff": False,
                "no_log": True,
            },
        ]
        play = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}]
        (self.place / "play.yml").write_text(json.dumps(play))
        done = self.tool("ansible-playbook", "-vvv", *flags, "play.yml")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((self.place / "result.json").read_text()), done.stdout + done.stderr

    def read_back(self, vm: str, path: str) -> bytes:
        image = self.state_dir / "vms" / vm / "service.img"
        return subprocess.run(["mtype", "-i", str(image), f"::/{path}"], check=True, capture_output=True).stdout

    def left_behind(self) -> list[Path]:
        return [path for path in self.remote_tmp.rglob("*") if path.is_file()]


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


def archives(shown: str) -> int:
    return sum("PUT" in line and "contents.tar" in line for line in shown.splitlines())


TWO = {
    "cidata": {"user_data": "#cloud-config\npassword: USERSECRET\n", "meta_data": "{}"},
    "vms": [
        {
            "name": name,
            "service": {
                "binary": "server",
                "keystore": f"files/keys/{name}/",
                "launch": {"environment": {"PORT": 80, "A": "web", "B": "root", "C": "ENVSECRET", "D": "1"}},
            },
        }
        for name in ("web", "db")
    ],
}


def test_contents_are_sent_once_and_only_where_they_are_missing(controller: Controller) -> None:
    asked, shown = controller.run(TWO, "--check", "--diff")
    assert asked["changed"] and archives(shown) == 0 and not controller.state_dir.exists()

    made, shown = controller.run(TWO, "--diff")
    assert made["changed"] and archives(shown) == 1 and made["vms"] == asked["vms"]
    for secret in ("USERSECRET", "ENVSECRET", "KEYSECRET"):
        assert secret not in shown
    assert controller.left_behind() == []
    for name in ("web", "db"):
        # Nothing is masked, though a variable's value stands in these paths.
        paths = [disk["path"] for disk in made["vms"][name]["disks"]]
        files = ("root.raw", "cidata.img", "service.img")
        assert paths == [str(controller.state_dir / "vms" / name / file) for file in files]
        assert controller.read_back(name, "service") == (controller.place / "files/server").read_bytes()
        assert controller.read_back(name, "keystore/tls/key.pem") == f"KEYSECRET of {name}".encode()
        assert b"C=ENVSECRET " in controller.read_back(name, "launch")

    again, shown = controller.run(TWO)
    assert not again["changed"] and archives(shown) == 0

    keys = controller.place / "files/keys/db/tls"
    (keys / "key.pem").write_text("new")
    (keys / "old.pem").rename(keys / "added.pem")
    changed, shown = controller.run(TWO, "--diff")
    assert changed["vms"]["db"]["actions"] == ["built service.img"] and not changed["vms"]["web"]["changed"]
    assert archives(shown) == 1 and controller.read_back("db", "keystore/tls/key.pem") == b"new"
    for what, path in (("added", "added.pem"), ("changed", "key.pem"), ("removed", "old.pem")):
        assert re.search(rf'^\+ +"{what}": \[\n\+ +"keystore/tls/{path}"\n\+ +\]', shown, re.MULTILINE)


def test_sources_of_vms_that_go_are_not_looked_for(controller: Controller) -> None:
    result, _output = controller.run({"service": {"binary": "nowhere"}, "state": "absent", "vms": [{"name": "web"}]})
    assert not result.get("failed") and not result["changed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "web", "service": {"binary": "nowhere"}}, "VM 'web'.*nowhere"),
        (
            {"name": "web", "service": {"binary": "server", "keystore": "server"}},
            "VM 'web'.*service.keystore.*is a file",
        ),
        ({"name": "web", "service": {"binary": "/usr/x", "remote_src": "true"}}, "VM 'web'.*/usr/x.*cannot be read"),
        (
            {"name": "web", "service": {"binary": "keys", "remote_src": "false"}},
            "VM 'web'.*service.binary.*is a directory",
        ),
        ({"name": "web", "vms": [{"name": "db"}]}, "exclude each other"),
        ({"vms": ["web"]}, "(?i)dict"),
        ({"name": "web", "service": "server"}, "(?i)dict"),
    ],
)
def test_bad_options_are_said(controller: Controller, options: dict[str, Any], message: str) -> None:
    result, _shown = controller.run(options)
    assert result["failed"]
    assert re.search(message, result["msg"]), result["msg"]
    assert not controller.state_dir.exists() and controller.left_behind() == []
