# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The launch script, run by real shells: what the service gets is what was written."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import launch

SHELLS = [["dash"], ["bash", "--posix"], ["bash"], ["busybox", "sh"]]

# Reads what the kernel gave it, since a language's own view of its environment may have been touched.
SERVICE = """#!/usr/bin/python3 -IS
import sys
out = sys.stdout.buffer
arguments = open("/proc/self/cmdline", "rb").read().split(b"\\0")[3:-1]
environment = open("/proc/self/environ", "rb").read().split(b"\\0")[:-1]
out.write(b"\\0".join([b"%d" % len(arguments), *arguments, *environment]))
"""

BYTES = st.binary(max_size=20).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
NASTY = st.lists(
    st.sampled_from(["\n", "'", '"', "$HOME", "$(id)", "`id`", "\\", "-n", "--", " ", "\r", "~", "!", "\x81"])
)
VALUES = st.one_of(BYTES, TEXT, NASTY.map("".join))
# Names that some shell keeps for itself: read-only, numeric, or changing how the rest is read.
KEPT = ["UID", "EUID", "PPID", "RANDOM", "SECONDS", "LINENO", "OPTIND", "IFS", "PATH", "LC_ALL", "PS4", "SHELLOPTS"]
NAMES = st.one_of(st.sampled_from(KEPT), st.from_regex(r"\A[A-Z_][A-Za-z0-9_]{1,6}\Z"))


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("srv")
    (directory / "service").write_text(SERVICE)
    (directory / "service").chmod(0o755)
    return directory


def run(shell: list[str], script: bytes, mount: Path) -> tuple[list[bytes], dict[bytes, bytes]]:
    (mount / "launch").write_bytes(script)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run([*shell, str(mount / "launch")], capture_output=True, env=environment, check=True)
    count, *words = done.stdout.split(b"\0")
    pairs = [word.partition(b"=") for word in words[int(count) :]]
    return words[: int(count)], {name: value for name, _kind, value in pairs}


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=st.lists(VALUES, max_size=4), environment=st.dictionaries(NAMES, VALUES, max_size=4))
@example(arguments=["-x", "--", "", "a\nb"], environment=dict.fromkeys(KEPT, 'it\'s "$HOME" `id`\n'))
@example(arguments=[], environment={})
def test_everything_arrives_as_written(
    shell: list[str], mount: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], environment: dict[str, str]
) -> None:
    if shutil.which(shell[0]) is None:
        pytest.fail(f"{shell[0]} is not installed")
    monkeypatch.setattr(launch, "MOUNT", str(mount))
    script = launch.render(arguments=arguments, environment=environment)
    got_arguments, got_environment = run(shell, script, mount)
    assert got_arguments == [encoded(argument) for argument in arguments]
    wanted = {encoded(name): encoded(value) for name, value in environment.items()}
    assert {name: got_environment.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_starts_in_its_directory(shell: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "it's $HOME"
    place.mkdir()
    (tmp_path / "service").write_text("#!/bin/sh\npwd\n")
    (tmp_path / "service").chmod(0o755)
    (tmp_path / "launch").write_bytes(b"")
    monkeypatch.setattr(launch, "MOUNT", str(tmp_path))
    (tmp_path / "launch").write_bytes(launch.render(workdir=str(place)))
    done = subprocess.run([*shell, str(tmp_path / "launch")], capture_output=True, text=True, check=True)
    assert done.stdout == f"{place}\n"
    place.rmdir()
    failed = subprocess.run([*shell, str(tmp_path / "launch")], capture_output=True, text=True, check=False)
    assert failed.returncode != 0 and failed.stdout == ""
