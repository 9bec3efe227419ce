# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils import status_run


def fake_run(monkeypatch: pytest.MonkeyPatch, written: str | None, printed: str = "") -> list[Any]:
    calls: list[Any] = []

    def run(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append((argv, options))
        if written is not None:
            Path(argv[-1].split('"status_file": "')[1].split('"')[0]).write_text(written)
        return subprocess.CompletedProcess(argv, 2, printed)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_a_failed_run_that_wrote_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_run(monkeypatch, '{"hosts": {"h1": {"msg": "gone"}}}')
    status = status_run.ask(["a.yml", "b.yml"], "hv", forks=7, timeout=5, arguments=["--vault-id", "x"])
    assert status == {"hosts": {"h1": {"msg": "gone"}}}
    argv, options = calls[0]
    assert argv[5:13] == ["--inventory", "a.yml", "--inventory", "b.yml", "--forks", "7", "--vault-id", "x"]
    assert options["timeout"] == 5
    assert options["env"][status_run.ASKING]


def test_a_run_that_wrote_nothing_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_run(monkeypatch, None, "[WARNING]: Could not match supplied host pattern, ignoring: hv\n")
    with pytest.raises(MicrovmError, match="no host matching 'hv' in a.yml could be asked: .*Could not match"):
        status_run.ask(["a.yml"], "hv", forks=1, timeout=5)


def test_a_run_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(argv, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(MicrovmError, match="option 'timeout': the hosts were not asked within 5 seconds"):
        status_run.ask(["a.yml"], "hv", forks=1, timeout=5)


def test_vaults_are_opened_likewise() -> None:
    given = {"vault_ids": ("prod@file", "dev@prompt"), "vault_password_files": ["pw"]}
    assert status_run.vault_arguments(given) == ["--vault-id", "prod@file", "--vault-password-file", "pw"]
    assert status_run.vault_arguments({}) == []
