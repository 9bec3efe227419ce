# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import guest_files
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.fat_disk import Content

KEY, SERVER = Content.of(b"key"), Content.of(b"server")
MANIFESTS = {
    "server": {"": (SERVER.sha256, SERVER.size)},
    "keys": {"a/key": (KEY.sha256, KEY.size)},
    "empty": {},
}


def test_cidata_has_the_names_that_cloud_init_looks_for() -> None:
    files = guest_files.cidata({"user_data": "u", "meta_data": "m", "network_config": "n"})
    assert {path: content.source for path, content in files.items()} == {
        "user-data": b"u",
        "meta-data": b"m",
        "network-config": b"n",
    }
    assert guest_files.cidata({"user_data": "", "meta_data": ""}).keys() == {"user-data", "meta-data"}
    with pytest.raises(MicrovmError, match="cidata.meta_data"):
        guest_files.cidata({"user_data": "u"})


def test_what_the_controller_has_is_known_before_it_is_sent(tmp_path: Path) -> None:
    options = {"binary": "server", "keystore": "keys"}
    files = guest_files.service(options, manifests=MANIFESTS)
    assert files.keys() == {"service", "keystore/a/key", "launch"}
    assert (files["service"].source, files["service"].sha256) == (None, SERVER.sha256)
    (tmp_path / KEY.sha256).write_bytes(b"key")
    files = guest_files.service(options, manifests=MANIFESTS, contents=tmp_path)
    assert files["keystore/a/key"].source == tmp_path / KEY.sha256 and files["service"].source is None
    assert guest_files.service({"binary": "server", "keystore": "empty"}, manifests=MANIFESTS).keys() == {
        "service",
        "launch",
    }


def test_what_lies_on_the_host_is_read_there(tmp_path: Path) -> None:
    (tmp_path / "keys/a").mkdir(parents=True)
    (tmp_path / "keys/a/key").write_bytes(b"key")
    (tmp_path / "server").write_bytes(b"server")
    options = {"binary": str(tmp_path / "server"), "keystore": str(tmp_path / "keys"), "remote_src": True}
    files = guest_files.service(options)
    assert (files["service"].sha256, files["keystore/a/key"].sha256) == (SERVER.sha256, KEY.sha256)
    (tmp_path / "keys/link").symlink_to(tmp_path)
    with pytest.raises(MicrovmError, match="link.*neither a file nor a directory"):
        guest_files.service(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "service.binary.*missing"),
        ({"binary": "other"}, "service.binary.*not sent along"),
        ({"binary": "keys"}, "service.binary.*is a directory"),
        ({"binary": "server", "keystore": "server"}, "service.keystore.*is a file"),
        ({"binary": "/nowhere", "remote_src": True}, "service.binary.*/nowhere.*cannot be read"),
    ],
)
def test_wrong_sources_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(MicrovmError, match=message):
        guest_files.service(options, manifests=MANIFESTS)
