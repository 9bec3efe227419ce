# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import checksums
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"sha256:{A}", checksums.Checksum(A, None)),
        (f"sha256:{A.upper()}", checksums.Checksum(A, None)),
        ("sha256:https://host/SHA256SUMS", checksums.Checksum(None, "https://host/SHA256SUMS")),
        ("sha256:/srv/SHA256SUMS", checksums.Checksum(None, "/srv/SHA256SUMS")),
    ],
)
def test_parse(text: str, expected: checksums.Checksum) -> None:
    assert checksums.parse(text, option="disk.checksum") == expected


@pytest.mark.parametrize("text", ["", A, "sha256", "sha256:", f"md5:{A}", f"sha256:{A[1:]}", f"sha256:{A[1:]}g"])
def test_what_is_no_checksum_is_refused(text: str) -> None:
    with pytest.raises(MicrovmError, match="option 'disk.checksum'"):
        checksums.parse(text, option="disk.checksum")


@pytest.mark.parametrize(
    "line",
    [
        f"{A}  disk.img",
        f"{A} *disk.img",
        f"{A} *./disk.img",
        f"{A.upper()}  disk.img",
        f"SHA256 (disk.img) = {A}",
        f"{A}  disk.img\r",
    ],
)
def test_listed(line: str) -> None:
    sums = f"-----BEGIN PGP SIGNED MESSAGE-----\n\n{B}  other-disk.img\n{line}\n{B}  disk.img.zip\n"
    assert checksums.listed(sums, "disk.img") == A


@pytest.mark.parametrize("sums", ["", f"{A}  other-disk.img\n", f"{A[1:]}  disk.img\n", f"MD5 (disk.img) = {A}\n"])
def test_not_listed(sums: str) -> None:
    assert checksums.listed(sums, "disk.img") is None
