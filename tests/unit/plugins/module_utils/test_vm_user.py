# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pwd
from types import SimpleNamespace

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_user
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError


@pytest.mark.parametrize("name", ["a", "web", "web-1", "x" * 28, "x" * 29, "x" * 63])
def test_a_name_fits(name: str) -> None:
    assert 1 <= len(vm_user.user_name(name)) <= 31


def test_short_names_are_kept() -> None:
    assert vm_user.user_name("web") == "vm-web"
    assert vm_user.user_name("x" * 28) == "vm-" + "x" * 28


def test_no_two_vms_share_a_user() -> None:
    names = [f"{'x' * 27}{end}" for end in ("", "a", "aa", "ab", "-a", "b" * 30, "b" * 31)]
    users = {vm_user.user_name(name) for name in names}
    assert len(users) == len(names)
    # What a long name is cut to is no VM's name.
    assert all("_" in user for user in users if len(user) == 31 and not user.endswith("xa"))


def test_another_ones_user_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SimpleNamespace(pw_name="vm-web", pw_gecos="Someone", pw_uid=1, pw_gid=1)
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: entry)
    with pytest.raises(MicrovmError, match="VM 'web': the user 'vm-web' is there, and is not the VM's"):
        vm_user.find("web")
    entry.pw_gecos = "microVM web"
    assert vm_user.find("web") == vm_user.User("vm-web", 1, 1)


def test_a_user_that_is_missing_is_none() -> None:
    assert vm_user.find("no-such-vm-of-the-tests") is None
