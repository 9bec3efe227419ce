# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import readiness
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.readiness import Condition, NotReady


def parsed(wait_for: dict[str, Any], **options: Any) -> readiness.Readiness:
    result = readiness.parse({"wait_for": wait_for, **options})
    assert result is not None
    return result


def test_nothing_is_waited_for() -> None:
    for options in ({}, {"wait_for": None}, {"wait_for": {}}, {"wait_for": {"timeout": 5, "api": False, "tcp": []}}):
        assert readiness.parse(options) is None


def test_everything_at_once() -> None:
    asked = parsed(
        {
            "timeout": 5,
            **{key: True for key in ("api", "tap", "notify", "cloud_init")},
            "serial": "login:",
            "tcp": [22, 80],
            "http": [{}, {"port": 8080, "path": "/health", "status": 204, "body": "up"}],
        },
        labels={"address": "10.0.0.2"},
        vsock={"cid": 3},
        nets=[{"tap": "t"}],
    )
    assert (asked.timeout, asked.address) == (5, "10.0.0.2")
    assert [str(condition) for condition in asked.conditions] == [
        "api",
        "tap",
        "notify",
        "cloud-init",
        "serial 'login:'",
        "tcp port 22",
        "tcp port 80",
        "http port 80, / with 200",
        "http port 8080, /health with 204 and 'up'",
    ]
    assert [condition.kind for condition in asked.conditions if condition.once] == ["notify", "cloud_init", "serial"]


def test_the_address_that_is_given_counts() -> None:
    assert parsed({"tcp": [22], "address": "10.0.0.9"}, labels={"address": "10.0.0.2"}).address == "10.0.0.9"
    assert parsed({"api": True}).timeout == readiness.DEFAULT_TIMEOUT


@pytest.mark.parametrize(
    ("wait_for", "options", "option"),
    [
        ({"serial": "("}, {}, "wait_for.serial"),
        ({"serial": "x"}, {"serial": {"mode": "off"}}, "wait_for"),
        ({"cloud_init": True}, {"serial": {"mode": "null"}}, "wait_for"),
        ({"tcp": [22]}, {}, "wait_for.address"),
        ({"tcp": [0]}, {"labels": {"address": "10.0.0.2"}}, "wait_for.tcp"),
        ({"http": [{}, {"path": "x"}]}, {"labels": {"address": "10.0.0.2"}}, "wait_for.http[1].path"),
        ({"http": [{"body": "["}]}, {"labels": {"address": "10.0.0.2"}}, "wait_for.http[0].body"),
        ({"http": [{"port": 65536}]}, {"labels": {"address": "10.0.0.2"}}, "wait_for.http[0].port"),
        ({"notify": True}, {}, "wait_for.notify"),
        ({"tap": True}, {}, "wait_for.tap"),
    ],
)
def test_what_can_never_hold_is_refused(wait_for: dict[str, Any], options: dict[str, Any], option: str) -> None:
    with pytest.raises(MicrovmError) as caught:
        readiness.parse({"wait_for": wait_for, **options})
    assert caught.value.option == option


API, TAP = Condition("api"), Condition("tap")


@pytest.mark.parametrize(
    ("mode", "wait_for", "since"),
    [
        ("pty", {"serial": "x"}, (50, 0)),
        ("socket", {"cloud_init": True}, (53, 0)),
        ("socket", {"serial": "x"}, (53, 0)),
    ],
)
def test_a_release_that_loses_what_is_waited_for_is_named(
    mode: str, wait_for: dict[str, Any], since: tuple[int, int]
) -> None:
    options = {"wait_for": wait_for, "serial": {"mode": mode}}
    readiness.check_release(options, since)
    readiness.check_release({**options, "serial": {"mode": "file"}}, (43, 0))
    readiness.check_release({**options, "wait_for": {"api": True}}, (43, 0))
    option = next(iter(wait_for))
    with pytest.raises(
        MicrovmError, match=f"option 'wait_for.{option}': .* needs Cloud Hypervisor v{since[0]}.0 or later"
    ):
        readiness.check_release(options, (since[0] - 1, 9))


def test_each_condition_must_hold_once() -> None:
    answers = {API: iter([None]), TAP: iter(["not yet", "not yet", None])}
    met = readiness.wait([API, TAP], lambda condition: next(answers[condition]), timeout=60)
    assert met.keys() == {API, TAP}


def test_the_end_of_the_wait_names_what_is_missing() -> None:
    asked = []

    def probe(condition: Condition) -> str | None:
        asked.append(condition)
        return None if condition == API else "nobody holds it"

    with pytest.raises(NotReady, match="^tap: nobody holds it$") as caught:
        readiness.wait([API, TAP], probe, timeout=0)
    assert caught.value.unmet == {TAP: "nobody holds it"}
    assert asked == [API, TAP]
