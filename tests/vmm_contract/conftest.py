# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One suite for the stand-in and for the real VMMs that start a guest here.

What the stand-in does likewise to the word, it does as one release. Tests of that run on the real VMM of this release alone,
tests of what the collection relies on, on every release: they have ``all_releases`` in the place of ``of_the_stand_in``.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import real_vmms
import requests
from documents import available, directory, document
from vmm_process import STAND_IN, Vmm

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000

# What tests of this tell a release that drops it.
_TOLD_AND_DROPPED = {"DiskConfig.backing_files", "DiskConfig.image_type", "vm.resize-disk"}
# What a release takes and answers that its own document does not have. Everything else that is undocumented fails.
UNDOCUMENTED = {
    "v43.0": {"vmm.shutdown:200", "DeviceNode.parent", *_TOLD_AND_DROPPED},
    "v48.0": {"vmm.shutdown:200", "DeviceNode.parent", *_TOLD_AND_DROPPED},
    "v53.0": {
        "vmm.shutdown:200",  # the document says 204
        "CpusConfig.profile",
        "CpusConfig.core_scheduling",
        "DeviceNode.parent",
        "DiskConfig.disable_aio",
        "DiskConfig.disable_io_uring",
        "PlatformConfig.iommu_address_width_bits",
        "PlatformConfig.iommufd",
        "PlatformConfig.vfio_p2p_dma",
        "VmConfig.generic_vhost_user",  # the document has generic-vhost-user, which is dropped silently
    },
}


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker is for."""
    config.addinivalue_line(
        "markers", "all_releases: runs on the real VMMs of every release, not of the stand-in's alone"
    )


def pytest_report_header() -> list[str]:
    """Say which VMMs the run uses."""
    real = [f"VMM: {real_vmms.said(path)}, {path}{_or_why_not(path)}" for path in real_vmms.paths()]
    documents = str(directory()) if available() else f"none, {directory()} does not have them"
    return [f"VMM: the stand-in, {STAND_IN}", *(real or ["VMM: no real one"]), f"API documents: {documents}"]


def _or_why_not(path: str) -> str:
    reason = real_vmms.why_not(path)
    return f": {reason}" if reason else ""


def pytest_sessionstart() -> None:
    """Move into a network namespace of our own, where TAPs can have any name, with a /sys that shows it."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@pytest.fixture(params=real_vmms.parameters())
def executable(request: pytest.FixtureRequest) -> str:
    """Each VMM in turn, those of other releases where the test's module is marked with ``all_releases``."""
    if request.param == "stand-in":
        return str(STAND_IN)
    path = str(request.param)
    if reason := real_vmms.why_not(path):
        pytest.skip(reason)
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out other releases than the stand-in's, where they are not asked for."""
    of_the_stand_in = real_vmms.release(str(STAND_IN))

    def stays(item: pytest.Item) -> bool:
        path = item.callspec.params.get("executable") if hasattr(item, "callspec") else None
        other = path not in (None, "stand-in", "real") and real_vmms.release(str(path)) != of_the_stand_in
        return not other or item.get_closest_marker("all_releases") is not None

    left_out = [item for item in items if not stays(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if stays(item)]


@pytest.fixture
def start_vmm(executable: str) -> Iterator[Callable[..., Vmm]]:
    """Start VMMs with the arguments given."""
    started: list[Vmm] = []

    def start(*arguments: str) -> Vmm:
        started.append(Vmm(executable, *arguments))
        return started[-1]

    yield start
    for vmm in started:
        vmm.close()


@pytest.fixture
def vmm(start_vmm: Callable[..., Vmm]) -> Vmm:
    """A VMM without a VM."""
    return start_vmm()


@pytest.fixture(autouse=True)
def _by_the_document(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold every request that our client sends, and every answer to it, against the document of the VMM's release."""
    if "executable" not in request.fixturenames:
        return
    release = real_vmms.label(request.getfixturevalue("executable"))
    if not available(release):
        return
    described, known = document(release), UNDOCUMENTED.get(release, set())
    send = requests.Session.send

    def checked(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        call = str(request.url).rpartition("/api/v1/")[2]
        method = str(request.method)
        misfits = list(described.request(method, call, json.loads(request.body) if request.body else None))
        misfits = [misfit for misfit in misfits if misfit.undocumented not in known]
        assert not misfits, f"our request {method} {call} {request.body!r}: {misfits}"
        answer = send(session, request, **options)
        if answer.status_code < 300:
            body = answer.json() if answer.content else None
            body = body if release == "v53.0" else _without_nulls(body)  # which left them out first
            misfits = list(described.answer(method, call, answer.status_code, body))
            misfits = [misfit for misfit in misfits if misfit.undocumented not in known]
            assert not misfits, f"the answer to {method} {call}: {misfits}"
        return answer

    monkeypatch.setattr(requests.Session, "send", checked)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return value
