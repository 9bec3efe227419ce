# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs with the tiny PVH guest: in the stand-in always, and in each real VMM where it can start a guest."""

from __future__ import annotations

from collections.abc import Iterator

import pvh_guest
import pytest
import real_vmms
from vm_host import RUNNER, STAND_IN, Host

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import tap, vm_record


@pytest.fixture(params=real_vmms.parameters())
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    root = tmp_path_factory.mktemp("vm")
    payload = root / "pvh.elf"
    pvh_guest.write(payload)
    vmm = str(STAND_IN)
    if request.param != "stand-in":
        vmm = request.param
        if reason := real_vmms.why_not(vmm):
            pytest.skip(reason)
    host = Host(root / "state", root / "run", vmm, payload)
    yield host
    for name in vm_record.known(host.state_dir):
        host.ensure(name, state="absent", by_name=True, grace=0)
    for name in host.taps:
        tap.remove(RUNNER, name)
