# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vmm_versions
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import Completed, HostRunner
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_versions import installed


class Counting(HostRunner):
    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def run(self, argv: Sequence[str], **options: object) -> Completed:
        self.calls.append(list(argv))
        return super().run(argv, **options)  # type: ignore[arg-type]


def binary(path: Path, version: str) -> str:
    """Put a VMM of this version in the place of the one that is there, as a package manager does."""
    new = path.with_suffix(".new")
    new.write_text(f"#!/bin/sh\nsleep 0.1\necho cloud-hypervisor {version}\n")
    new.chmod(0o755)
    new.replace(path)
    return str(path)


def test_a_binary_is_asked_once_until_it_is_replaced(tmp_path: Path) -> None:
    runner = Counting()
    vmm = binary(tmp_path / "vmm", "v53.0")
    with ThreadPoolExecutor(max_workers=3) as pool:
        assert list(pool.map(partial(installed, runner), [vmm] * 6)) == [(53, 0)] * 6
    assert runner.calls == [[vmm, "--version"]]
    binary(tmp_path / "vmm", "v54.0")
    assert installed(runner, vmm) == (54, 0)


def test_one_that_is_missing_is_named_until_it_is_there(tmp_path: Path) -> None:
    runner = Counting()
    for _number in range(2):
        with pytest.raises(MicrovmError, match="vmm' is not installed on this host; have the role host"):
            installed(runner, str(tmp_path / "vmm"))
    assert installed(runner, binary(tmp_path / "vmm", "v53.0")) == (53, 0)


def test_one_that_is_too_old_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MicrovmError, match=r"is Cloud Hypervisor v42\.0; v43\.0 is the oldest supported"):
        installed(Counting(), binary(tmp_path / "vmm", "v42.0"))


def test_a_release_is_not_told_what_it_lacks_and_does_of_itself() -> None:
    config = {
        "disks": [{"path": "/d", "image_type": "Raw", "backing_files": False, "sparse": True, "readonly": False}],
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "nested": True},
        "rng": {"src": "/dev/urandom", "pci_segment": 0},
    }
    assert vmm_versions.adapted(config, (43, 0)) == {
        "disks": [{"path": "/d", "readonly": False}],
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "rng": {"src": "/dev/urandom"},
    }
    assert vmm_versions.adapted(config, (53, 0)) == config
    assert vmm_versions.adapted({"cpus": {"max_vcpus": 256}}, (48, 0)) == {"cpus": {"max_vcpus": 256}}


@pytest.mark.parametrize(
    ("config", "version", "message"),
    [
        (
            {"cpus": {"nested": False}},
            (49, 0),
            "option 'cpus.nested': needs Cloud Hypervisor v50.0 or later, and this is v49.0",
        ),
        (
            {"cpus": {"boot_vcpus": 1, "max_vcpus": 256}},
            (47, 0),
            "option 'cpus.max': 256 needs Cloud Hypervisor v48.0 or later, and this is v47.0, which has at most 255",
        ),
        ({"numa": [{"cpus": [3, 300]}]}, (43, 0), "option 'numa.cpus': 300 needs Cloud Hypervisor v48.0"),
        ({"disks": [{"sparse": False}]}, (50, 1), "option 'disks.sparse': needs Cloud Hypervisor v51.0"),
        ({"net": [{"pci_device_id": 3}]}, (51, 0), "option 'nets.pci_device_id': needs Cloud Hypervisor v52.0"),
        (
            {"memory": {"zones": [{"mergeable": True}]}},
            (51, 2),
            "option 'memory.zones.mergeable': needs Cloud Hypervisor v52.0",
        ),
        ({"generic_vhost_user": [{"id": "g"}]}, (51, 0), "option 'generic_vhost_user': needs Cloud Hypervisor v52.0"),
        ({"rtc": {"id": "r"}}, (52, 0), "option 'rtc': needs Cloud Hypervisor v53.0"),
        ({"platform": {"system_version": "1"}}, (52, 0), "option 'platform.version': needs Cloud Hypervisor v53.0"),
        (
            {"sgx_epc": [{"id": "e"}]},
            (48, 0),
            "option 'sgx_epc': needs Cloud Hypervisor v47.0 or earlier, and this is v48.0",
        ),
    ],
)
def test_what_a_release_lacks_is_named_with_the_one_that_has_it(
    config: dict[str, Any], version: tuple[int, int], message: str
) -> None:
    with pytest.raises(MicrovmError) as caught:
        vmm_versions.adapted(config, version)
    assert message in str(caught.value)
