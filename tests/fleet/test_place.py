# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook place: in check mode, for good, again, and where a VM fits nowhere."""

from __future__ import annotations

import json

from playbook_runs import Hosts

PLACE = "microvm.cloud_hypervisor.place"
WEB = [{"name": f"web{number}", "anti_affinity": "web"} for number in (1, 2)]


def test_places_are_found_once_and_kept(hosts: Hosts) -> None:
    hosts.write({"a": {}, "b": {}})
    path = hosts.directory / "placements.json"
    run = hosts.run(PLACE, "--check", "--diff", vm_fleet=WEB)
    assert run.returncode == 0, run.output
    assert run.recap["a"]["changed"] == 1 and '+    "web1": "a"' in run.output
    assert not path.exists()
    run = hosts.run(PLACE, vm_fleet=WEB, strategy="pack")
    assert json.loads(path.read_text()) == {"web1": "a", "web2": "b"}
    # One is too large, one is new, one has gone; the one that stays is where it was.
    more = [*WEB, {"name": "web3", "anti_affinity": "web"}, {"name": "huge", "memory": {"size": "999TiB"}}]
    run = hosts.run(PLACE, vm_fleet=more[1:])
    assert run.returncode != 0 and run.recap["a"]["failed"] == 1
    told = " ".join(run.output.split())
    assert "VM 'huge' fits nowhere: a has" in told
    assert "VM 'web3'" not in told
    assert json.loads(path.read_text()) == {"web2": "b", "web3": "a"}
