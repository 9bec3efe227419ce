# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role host, on a host with an /etc of its own: what it sets for the VMs' packets and rules, and that it takes it back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from world import VMS

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import firewall

# As Debian has it, with a table of the user's own.
NFTABLES_CONF = """\
#!/usr/sbin/nft -f

flush ruleset

table inet mine {
\tchain input {
\t\ttype filter hook input priority filter;
\t}
}
"""
PLAYBOOK = """\
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: microvm.cloud_hypervisor.host
"""


class Host:
    """A shell in the lab's network and in a file system whose /etc and /usr/local are its own; both end with it."""

    def __init__(self, lab: Lab, tmp_path: Path) -> None:
        self.state_dir = tmp_path / "state"
        (tmp_path / "site.yml").write_text(PLAYBOOK)
        (tmp_path / "upper").mkdir()
        self.variables = {
            "host_state_dir": str(self.state_dir),
            "host_run_dir": str(tmp_path / "run"),
            "host_install_packages": False,
            "host_uplink": "up0",
            "host_forwarding6": True,
            "ansible_python_interpreter": sys.executable,
        }
        self.site = tmp_path / "site.yml"
        start = (
            "mount --make-rprivate / && mount -t tmpfs upper $1/upper && "
            "for path in etc usr/local; do mkdir -p $1/upper/$path $1/upper/work/$path && "
            "mount -t overlay overlay -o lowerdir=/$path,upperdir=$1/upper/$path,workdir=$1/upper/work/$path /$path || exit; "
            "done; echo ready; exec cat"
        )
        self.keeper = subprocess.Popen(
            ["ip", "netns", "exec", lab.namespace, "unshare", "--mount", "sh", "-c", start, "sh", str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.keeper.stdout is not None and self.keeper.stdout.readline() == "ready\n"
        self.write("/etc/nftables.conf", NFTABLES_CONF)

    def close(self) -> None:
        self.keeper.communicate("")

    def run(self, *argv: str, stdin: str | None = None) -> str:
        entered = ["nsenter", f"--target={self.keeper.pid}", "--mount", "--net", *argv]
        done = subprocess.run(entered, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def write(self, path: str, content: str) -> None:
        self.run("tee", path, stdin=content)

    def role(self, state: str = "present", *options: str) -> str:
        variables = json.dumps({**self.variables, "host_state": state})
        return self.run(
            "ansible-playbook", "-i", "localhost,", "-c", "local", "-e", variables, str(self.site), *options
        )

    def files(self) -> set[str]:
        return set(self.run("find", "/etc", "/usr/local", "-newer", str(self.site), "-type", "f").splitlines())

    def sysctl(self, *keys: str) -> list[str]:
        return [self.run("sysctl", "-n", key).strip() for key in keys]


@pytest.fixture
def host(lab: Lab, tmp_path: Path) -> Iterator[Host]:
    lab.runner.run(["nft", "flush", "ruleset"])
    made = Host(lab, tmp_path)
    yield made
    made.close()
    lab.runner.run(["nft", "flush", "ruleset"])


def test_what_the_role_sets_and_that_it_takes_it_back(host: Host, lab: Lab) -> None:
    forwarding, other = "net.ipv4.conf.up0.forwarding", "net.ipv4.conf.lan0.forwarding"
    forwarding6 = "net.ipv6.conf.up0.force_forwarding"
    if not Path("/proc/sys/net/ipv6/conf/all/force_forwarding").exists():
        forwarding6 = "net.ipv6.conf.all.forwarding"
    host.run("sysctl", "-q", "-w", f"{forwarding}=0", f"{other}=0", f"{forwarding6}=0")
    files = host.files()

    host.role("present", "--check")
    assert host.sysctl(forwarding, forwarding6) == ["0", "0"]
    host.role()
    assert host.sysctl(forwarding, other, forwarding6) == ["1", "0", "1"]
    assert "changed=0 " in host.role()

    the_rules_are_back_after_nftables_service_has_flushed(host, lab)

    host.role("absent")
    assert host.sysctl(forwarding, other, forwarding6) == ["0", "0", "0"]
    assert host.run("cat", "/etc/nftables.conf") == NFTABLES_CONF
    assert host.files() == files
    assert not host.state_dir.exists()


def the_rules_are_back_after_nftables_service_has_flushed(host: Host, lab: Lab) -> None:
    conf = host.run("cat", "/etc/nftables.conf")
    assert conf == NFTABLES_CONF + f'include "{host.state_dir}/nftables/*.nft"\n'
    # Before there is any VM, and so any file.
    host.run("nft", "--file", "/etc/nftables.conf")
    assert host.run("nft", "list", "tables") == "table inet mine\n"

    firewall.ensure([VMS["one"], VMS["ten"]], state_dir=host.state_dir, runner=lab.runner)
    whole = host.run("nft", "--stateless", "list", "ruleset")
    # What the service does when it starts, and when it is reloaded; and when it stops.
    host.run("nft", "--file", "/etc/nftables.conf")
    assert host.run("nft", "--stateless", "list", "ruleset") == whole
    host.run("nft", "flush", "ruleset")
    host.run("nft", "--file", "/etc/nftables.conf")
    assert host.run("nft", "--stateless", "list", "ruleset") == whole
    absent = [{"name": name, "state": "absent"} for name in ("one", "ten")]
    firewall.ensure(absent, state_dir=host.state_dir, runner=lab.runner)
