# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rules of a VM over restarts of what loads them."""

from __future__ import annotations

from conftest import Node

NAME = "web"
MAC, ADDRESS, TAP = "02:63:0a:fc:00:06", "10.252.0.6", "hotap-7"


def state(node: Node) -> str:
    return str(node.module("ch_nft_info", names=[NAME])["vms"][NAME]["state"])


def test_the_rules_are_there_again_before_the_vm(node: Node) -> None:
    node.module("ch_nft", name=NAME, tap=TAP, mac=MAC, address=ADDRESS)
    try:
        node.vm(NAME, nets=[{"tap": TAP, "mac": MAC}])
        assert state(node) == "present"

        node.reboot()
        assert state(node) == "present"
        assert node.info(NAME)["state"] == "running"
        at = "systemctl show --value --property"
        loaded = node.out(f"{at}=ExecMainExitTimestampMonotonic microvm-firewall.service")
        assert 0 < int(loaded) < int(node.out(f"{at}=ExecMainStartTimestampMonotonic microvm@{NAME}"))

        pid = node.info(NAME)["pid"]
        node.ssh("systemctl restart nftables.service")
        assert state(node) == "present"
        # It empties the ruleset.
        node.ssh("systemctl stop nftables.service")
        assert state(node) == "broken"
        node.ssh("systemctl reload microvm-firewall.service")
        assert state(node) == "present"
        assert node.info(NAME)["pid"] == pid
    finally:
        node.module("ch_nft", name=NAME, state="absent")
    assert state(node) == "absent"
