# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.firewall_host import foreign_drops


def chain(**options: Any) -> dict[str, Any]:
    shape = {"family": "inet", "table": "other", "name": "c", "type": "filter", "hook": "forward", "prio": 0}
    return {"chain": {**shape, "policy": "accept", **options}}


def rule(*expr: dict[str, Any]) -> dict[str, Any]:
    return {"rule": {"family": "inet", "table": "other", "chain": "c", "expr": list(expr)}}


REJECT: dict[str, Any] = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
XT_REJECT: dict[str, Any] = {"xt": {"type": "target", "name": "REJECT"}}
COUNTER: dict[str, Any] = {"counter": {"packets": 1, "bytes": 60}}
CONDITION: dict[str, Any] = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}}


@pytest.mark.parametrize(
    ("objects", "found"),
    [
        ([chain()], False),
        ([chain(policy="drop")], True),
        ([chain(policy="drop", table="cloud_hypervisor")], False),
        ([chain(policy="drop", family="bridge")], False),
        ([chain(policy="drop", hook=None)], False),
        ([chain(policy="drop", type="nat")], False),
        ([chain(), rule({"drop": None})], True),
        ([chain(), rule(REJECT)], True),
        ([chain(), rule(COUNTER, {"log": None}, REJECT)], True),
        ([chain(), rule({"xt": {"type": "match", "name": "comment"}}, COUNTER, XT_REJECT)], True),
        ([chain(), rule({"xt": {"type": "match", "name": "conntrack"}}, COUNTER, XT_REJECT)], False),
        ([chain(), rule({"xt": None})], False),
        ([chain(), rule(CONDITION, REJECT)], False),
        ([chain(), rule(REJECT), rule({"accept": None})], False),
        ([chain(hook=None), rule(REJECT)], False),
    ],
)
def test_chains_that_drop_what_they_do_not_accept(objects: list[dict[str, Any]], found: bool) -> None:
    assert foreign_drops(objects) == (["inet other c"] if found else [])
