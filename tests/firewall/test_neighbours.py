# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Other firewalls on the host: what of theirs would drop a VM's packets is named, and none of it is touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from world import VMS

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import firewall

# The chains that Docker makes, as far as they matter (github.com/moby/moby, daemon/libnetwork/drivers/bridge).
DOCKER = [
    "iptables-nft --new-chain DOCKER-USER",
    "iptables-nft --append FORWARD --jump DOCKER-USER",
    "iptables-nft --append FORWARD --out-interface docker0 --match conntrack --ctstate RELATED,ESTABLISHED --jump ACCEPT",
    "iptables-nft --table nat --append POSTROUTING --source 172.17.0.0/16 ! --out-interface docker0 --jump MASQUERADE",
    "iptables-nft --policy FORWARD DROP",
]
# Those of "ufw enable" with its defaults, to which all others jump.
UFW = [
    f"{command} --policy {chain} DROP"
    for command in ("iptables-nft", "ip6tables-nft")
    for chain in ("INPUT", "FORWARD")
]
# Those of firewalld 1.3, which ends what it has accepted nothing of by a rule.
FIREWALLD = [
    "nft add table inet firewalld",
    *(
        command
        for hook in ("INPUT", "FORWARD")
        for command in (
            f"nft add chain inet firewalld filter_{hook} {{ type filter hook {hook.lower()} priority filter + 10; }}",
            f"nft add rule inet firewalld filter_{hook} ct state {{ established, related }} accept",
            f"nft add rule inet firewalld filter_{hook} reject with icmpx admin-prohibited",
        )
    ),
    "nft add chain inet firewalld filter_OUTPUT { type filter hook output priority filter + 10; }",
    "nft add rule inet firewalld filter_OUTPUT oifname lo accept",
]
LEGACY = ["iptables-legacy --policy FORWARD DROP", "ip6tables-legacy --policy INPUT DROP"]
REJECTING = [
    "iptables-nft --append FORWARD --in-interface eth9 --jump ACCEPT",
    "iptables-nft --append FORWARD --match comment --comment last --jump REJECT",
]
HARMLESS = [
    "iptables-nft --append FORWARD --in-interface eth9 --jump DROP",
    "iptables-nft --append INPUT --match conntrack --ctstate INVALID --jump REJECT",
    "iptables-nft --table nat --append POSTROUTING --jump MASQUERADE",
]


@pytest.fixture(autouse=True)
def nothing_else(lab: Lab) -> Iterator[None]:
    lab.runner.run(["nft", "flush", "ruleset"])
    yield
    lab.runner.run(["nft", "flush", "ruleset"])
    for command in LEGACY:
        lab.runner.run(command.replace("DROP", "ACCEPT").split())


@pytest.mark.parametrize(
    ("commands", "found"),
    [
        pytest.param(DOCKER, ["ip filter FORWARD"], id="Docker"),
        pytest.param(UFW, ["ip filter FORWARD", "ip filter INPUT", "ip6 filter FORWARD", "ip6 filter INPUT"], id="ufw"),
        pytest.param(FIREWALLD, ["inet firewalld filter_FORWARD", "inet firewalld filter_INPUT"], id="firewalld"),
        pytest.param(LEGACY, ["iptables-legacy filter FORWARD", "ip6tables-legacy filter INPUT"], id="legacy"),
        pytest.param(REJECTING, ["ip filter FORWARD"], id="rejecting"),
        pytest.param(HARMLESS, [], id="harmless"),
    ],
)
def test_what_drops_is_named_and_left_alone(lab: Lab, tmp_path: Path, commands: list[str], found: list[str]) -> None:
    for command in commands:
        program, _space, words = command.partition(" ")
        lab.runner.run([program, words] if program == "nft" else command.split())
    theirs = lab.runner.run(["nft", "list", "ruleset"]).stdout
    assert firewall.ensure([VMS["one"]], state_dir=tmp_path, runner=lab.runner).foreign_drops == found
    firewall.ensure([{"name": "one", "state": "absent"}], state_dir=tmp_path, runner=lab.runner)
    assert lab.runner.run(["nft", "list", "ruleset"]).stdout == theirs
