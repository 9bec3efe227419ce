# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One suite for the stand-in and, where it is on PATH and starts a guest, for the real VMM."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from documents import available, directory, document
from vmm_process import STAND_IN, Vmm, real_vmm

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000

# What v53.0 takes and answers that its own document does not have. Everything else that is undocumented fails.
UNDOCUMENTED = {
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
}


@functools.cache
def _real() -> tuple[str | None, str]:
    return real_vmm()


def pytest_report_header() -> list[str]:
    """Say which VMMs the run uses."""
    path, reason = _real()
    documents = str(directory()) if available() else f"none, {directory()} does not have them"
    return [
        f"VMM: the stand-in, {STAND_IN}",
        f"VMM: the real one, {path} ({reason})" if path else f"VMM: not the real one: {reason}",
        f"API documents: {documents}",
    ]


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


@pytest.fixture(params=["standin", "real"])
def executable(request: pytest.FixtureRequest) -> str:
    """Each VMM in turn."""
    if request.param == "standin":
        return str(STAND_IN)
    path, reason = _real()
    if path is None:
        pytest.skip(reason)
    return path


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
def _by_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold every request that our client sends, and every answer to it, against v53.0's document."""
    if not available():
        return
    send = requests.Session.send

    def checked(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        call = str(request.url).rpartition("/api/v1/")[2]
        method = str(request.method)
        misfits = list(document("v53.0").request(method, call, json.loads(request.body) if request.body else None))
        misfits = [misfit for misfit in misfits if misfit.undocumented not in UNDOCUMENTED]
        assert not misfits, f"our request {method} {call} {request.body!r}: {misfits}"
        answer = send(session, request, **options)
        body = answer.json() if answer.content else None
        if answer.status_code < 300:
            misfits = list(document("v53.0").answer(method, call, answer.status_code, body))
            misfits = [misfit for misfit in misfits if misfit.undocumented not in UNDOCUMENTED]
            assert not misfits, f"the answer to {method} {call}: {misfits}"
        else:
            assert isinstance(body, list) and all(isinstance(cause, str) for cause in body), body
        return answer

    monkeypatch.setattr(requests.Session, "send", checked)
