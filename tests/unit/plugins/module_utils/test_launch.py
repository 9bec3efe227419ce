# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import shlex

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.launch import render


def test_nothing_is_needed() -> None:
    assert render() == b"#!/bin/sh\nset -eu\nexec /srv/service\n"


def test_what_it_runs_is_one_command() -> None:
    environment = {"A": "it's", "B": "\n", "PORT": 80}
    script = render(arguments=["-v", "a b", 1, "\udcff"], environment=environment, workdir="/my dir")
    *head, cd, command = script.decode("utf-8", "surrogateescape").split("\n", 3)
    assert (head, cd) == (["#!/bin/sh", "set -eu"], "cd -- '/my dir'")
    words = ["exec", "env", "A=it's", "B=\n", "PORT=80", "/srv/service", "-v", "a b", "1", "\udcff"]
    assert shlex.split(command) == words


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "Ä", "A\n", "A="])
def test_a_name_that_is_no_variables_is_refused(name: str) -> None:
    with pytest.raises(MicrovmError, match="not a variable's name"):
        render(environment={name: "x"})


@pytest.mark.parametrize("value", ["se\0cret", True, None, 1.5, ["secret"], "secret\ud800"])
def test_a_value_that_no_process_can_be_given_is_refused_unseen(value: object) -> None:
    for options in ({"environment": {"A": value}}, {"arguments": [value]}):
        with pytest.raises(MicrovmError) as caught:
            render(**options)
        assert "secret" not in str(caught.value) and "se\0" not in str(caught.value)


def test_a_directory_is_absolute() -> None:
    with pytest.raises(MicrovmError, match="absolute"):
        render(workdir="srv")
