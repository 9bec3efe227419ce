# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images of qemu-img and of the packers, told apart by their first bytes."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import image_format
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner

MIB = 1 << 20
qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


def created(path: Path, format: str, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", format, *options, str(path), "4M"], check=True)
    return path


def refused(path: Path) -> str:
    with pytest.raises(MicrovmError) as caught:
        image_format.recognise(path, name="https://host/it")
    assert caught.value.option == "disk.src"
    assert caught.value.message.startswith("'https://host/it' ")
    return caught.value.message


@qemu
@pytest.mark.parametrize(
    "options", [(), ("-o", "compat=0.10"), ("-o", "compression_type=zstd"), ("-o", "extended_l2=on")]
)
def test_qcow2(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert image_format.recognise(created(tmp_path / "disk", "qcow2", *options), name="it") == "qcow2"


@pytest.mark.parametrize("offset", [0, 0x8001])
def test_raw(tmp_path: Path, offset: int) -> None:
    """A disk with an MBR, or none, and an ISO 9660 image."""
    content = bytearray(MIB)
    content[offset : offset + 5] = b"CD001"
    content[510:512] = b"\x55\xaa"
    (tmp_path / "disk").write_bytes(content)
    assert image_format.recognise(tmp_path / "disk", name="it") == "raw"


@qemu
@pytest.mark.parametrize(
    ("format", "options", "what"),
    [
        ("vmdk", (), "is a VMDK image"),
        ("vmdk", ("-o", "subformat=monolithicFlat"), "is the descriptor of a VMDK image"),
        ("vhdx", (), "is a VHDX image"),
        ("vpc", (), "is a VHD image"),
        ("vdi", (), "is a VDI image"),
        ("qed", (), "is a QED image"),
        ("parallels", (), "is a Parallels image"),
        ("qcow", (), "is no whole qcow2 image of version 2 or 3"),
    ],
)
def test_another_format_is_refused_by_its_name(
    tmp_path: Path, format: str, options: tuple[str, ...], what: str
) -> None:
    message = refused(created(tmp_path / "disk", format, *options))
    assert what in message
    assert "qemu-img convert" in message


@qemu
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
@pytest.mark.parametrize("name", ["/etc/shadow", "json:{}"])
def test_a_backing_file_is_refused_by_its_name(tmp_path: Path, compat: str, name: str) -> None:
    made = created(tmp_path / "disk", "qcow2", "-u", "-o", f"compat={compat}", "-b", name, "-F", "raw")
    assert f"names a backing file, '{name}', which could be any file" in refused(made)


@qemu
def test_an_external_data_file_is_refused(tmp_path: Path) -> None:
    made = created(tmp_path / "disk", "qcow2", "-o", f"data_file={tmp_path / 'data'}")
    assert "names an external data file, which could be any file of the host" in refused(made)


@qemu
@pytest.mark.parametrize("method", [1, 2])
def test_an_encrypted_image_is_refused(tmp_path: Path, method: int) -> None:
    made = created(tmp_path / "disk", "qcow2")
    with made.open("r+b") as file:
        file.seek(35)  # the last byte of crypt_method; making such an image takes a key that qemu-img derives slowly
        file.write(bytes([method]))
    assert "is encrypted" in refused(made)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; give a raw or qcow2 image"),
        (b"QFI\xfb" + bytes(50), "is no whole qcow2 image"),
        (b"QFI\xfb" + bytes(3) + b"\3" + b"\xff" * 8 + bytes(100), "names a backing file, ''"),
        (b"\n<!DOCTYPE html><title>Log in</title>", "is a web page; give the URL of the image itself"),
        (b"\x04\x22\x4d\x18" + bytes(100), "is compressed with lz4"),
        (gzip.compress(b"x", mtime=0), "is compressed twice"),
    ],
)
def test_what_is_no_disk_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "disk").write_bytes(content)
    assert message in refused(tmp_path / "disk")


def test_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(1000))
    with tarfile.open(tmp_path / "tar", "w") as tar:
        tar.add(tmp_path / "disk.raw", "disk.raw")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.write(tmp_path / "disk.raw", "disk.raw")
    assert "is a tar archive, such as an OVA; unpack it" in refused(tmp_path / "tar")
    assert "is a ZIP archive; unpack it" in refused(tmp_path / "zip")


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
def test_what_is_cut_short_cannot_be_decompressed(tmp_path: Path, kind: str) -> None:
    packed, target = tmp_path / "packed", tmp_path / "disk"
    whole = subprocess.run([kind, "-c"], input=os.urandom(MIB), capture_output=True, check=True).stdout
    packed.write_bytes(whole[:-10])
    target.touch()
    assert image_format.compression(packed) == kind
    with pytest.raises(MicrovmError, match=f"'https://host/it' cannot be decompressed with {kind}: "):
        image_format.decompress(HostRunner(), packed, kind, target, name="https://host/it")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_memory_stays_flat(tmp_path: Path, kind: str) -> None:
    packed, target = tmp_path / "packed", tmp_path / "disk"
    with packed.open("wb") as file:
        subprocess.run(["sh", "-c", f"head -c 200M /dev/zero | tr '\\0' x | {kind} -1 -c"], stdout=file, check=True)
    target.touch()
    program = f"""
import resource
from pathlib import Path
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import image_format
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner
def peak():
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
before = peak()
image_format.decompress(HostRunner(), Path({str(packed)!r}), {kind!r}, Path({str(target)!r}), name="it")
print(peak() - before)
"""
    # ansible-test finds the collection by an importer of its own, which a child process does not have.
    environment = {**os.environ, "PYTHONPATH": str(Path(image_format.__file__).parents[5])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert target.stat().st_size == 200 * MIB
    assert int(done.stdout) < 30 << 10, "KiB"
