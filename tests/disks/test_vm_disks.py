# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real disks: qemu-img and qemu-io, file systems that share blocks and that do not, images read back by mtools."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_disks
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_disks import Sources

MIB = 1 << 20


def command(*argv: object) -> str:
    return subprocess.run([str(word) for word in argv], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs"])
def formatted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    kind = request.param
    place = tmp_path_factory.mktemp(kind)
    with (place / "volume").open("wb") as volume:
        volume.truncate(400 * MIB)
    command(f"mkfs.{kind}", "-q", place / "volume")
    mounted = place / "mounted"
    mounted.mkdir()
    command("mount", "-o", "loop", place / "volume", mounted)
    try:
        yield kind, mounted
    finally:
        command("umount", mounted)


class Host:
    """A host's state directory, with a base image whose first and last bytes are known."""

    def __init__(self, place: Path) -> None:
        self.state_dir = place / "state"
        self.image = place / "base.raw"
        with self.image.open("wb") as file:
            file.write(b"first" * 1000)
            file.seek(8 * MIB - 4)
            file.write(b"last")

    def ensure(self, *, check_mode: bool = False, **options: Any) -> Outcome:
        return vm_disks.ensure(
            {"name": "web", "image": str(self.image), **options},
            state_dir=self.state_dir,
            runner=HostRunner(),
            sources=Sources(),
            check_mode=check_mode,
        )

    @property
    def directory(self) -> Path:
        return self.state_dir / "vms" / "web"

    def files(self) -> dict[str, tuple[int, int, int]]:
        """What is there, by name, so that nothing can be replaced or written to unseen."""
        found = {path.name: path.stat() for path in self.directory.iterdir()} if self.directory.exists() else {}
        return {name: (status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found.items()}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def info(path: Path) -> dict[str, Any]:
    return dict(json.loads(command("qemu-img", "info", "--output=json", path)))


def locked(path: Path, kind: int) -> int:
    """Lock a file as Cloud Hypervisor does, from another open file description."""
    descriptor = os.open(path, os.O_RDWR)
    fcntl.fcntl(descriptor, 37, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, path.stat().st_size, 0))
    return descriptor


# ---- Root disks ----


def test_the_root_disk_shares_blocks_where_it_can(formatted: tuple[str, Path], tmp_path: Path) -> None:
    kind, mounted = formatted
    host = Host(mounted)
    outcome = host.ensure(root={"size": "16MiB"})
    shares = kind in ("xfs", "btrfs")
    assert outcome.facts["root_mode"] == ("reflink" if shares else "overlay")
    root = Path(outcome.facts["disks"][0]["path"])
    assert root.name == ("root.raw" if shares else "root.qcow2")
    assert outcome.facts["disks"][0]["backing_files"] is not shares
    assert info(root)["virtual-size"] == 16 * MIB
    plain = tmp_path / "plain"
    command("qemu-img", "convert", "-O", "raw", root, plain)
    content = plain.read_bytes()
    assert content[: 8 * MIB] == host.image.read_bytes() and not any(content[8 * MIB :])
    if shares:
        assert "shared" in command("filefrag", "-v", root)
        root.open("r+b").write(b"other")
        assert host.image.read_bytes().startswith(b"firstfirst")
    host.ensure(state="absent")
    if not shares:
        with pytest.raises(MicrovmError, match="cannot share blocks"):
            host.ensure(root={"mode": "reflink"})
        assert host.files() == {}


def test_a_copy_is_whole_sparse_and_private(host: Host) -> None:
    host.ensure(root={"mode": "copy"})
    root = host.directory / "root.raw"
    assert root.read_bytes() == host.image.read_bytes()
    assert root.stat().st_blocks * 512 < MIB
    assert root.stat().st_mode & 0o777 == 0o600 and host.directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", ["copy", "overlay"])
def test_the_root_disk_grows_and_never_shrinks(host: Host, mode: str) -> None:
    root = {"mode": mode}
    host.ensure(root=root)
    outcome = host.ensure(root=root | {"size": "12MiB"})
    path = Path(outcome.facts["disks"][0]["path"])
    assert outcome.changed and info(path)["virtual-size"] == 12 * MIB
    assert not host.ensure(root=root | {"size": "12MiB"}).changed
    assert not host.ensure(root=root).changed
    before = host.files()
    with pytest.raises(MicrovmError, match=f"{10 * MIB} .*{12 * MIB}.*never shrunk"):
        host.ensure(root=root | {"size": "10MiB"})
    lock = locked(path, fcntl.F_WRLCK)
    with pytest.raises(MicrovmError, match="stop the VM first"):
        host.ensure(root=root | {"size": "20MiB"})
    os.close(lock)
    assert host.files() == before


def test_another_image_is_said_and_the_disk_kept(host: Host, tmp_path: Path) -> None:
    host.ensure(root={"mode": "copy"})
    before = host.files()
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(MIB))
    outcome = host.ensure(image=str(other), root={"mode": "copy"})
    assert outcome.facts["root_outdated"] and not outcome.changed and host.files() == before


def test_a_root_disk_keeps_the_kernel_of_its_image(host: Host, tmp_path: Path) -> None:
    root, old, new = {"mode": "copy"}, {"kernel": "/i/1", "initramfs": None}, {"kernel": "/i/2", "initramfs": "/i/3"}
    assert host.ensure(root=root, boot=old).facts["boot"] == {"kernel": "/i/1"}
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(MIB))
    outcome = host.ensure(image=str(other), root=root, boot=new)
    assert outcome.facts["boot"] == {"kernel": "/i/1"} and not outcome.changed
    # The image is the same, and its kernel another: that is meant.
    asked = host.ensure(root=root, boot=new, check_mode=True)
    assert asked.changed and asked.actions == ("noted what boots root.raw",)
    assert host.ensure(root=root, boot=new).facts["boot"] == new
    assert not host.ensure(root=root, boot=new).changed
    assert host.ensure(root=root).facts["boot"] == new
    assert host.ensure(root=root | {"size": "12MiB"}, boot=old).facts["boot"] == {"kernel": "/i/1"}
    assert not host.ensure(root=root, boot=old).changed


@pytest.mark.parametrize(
    ("image", "root", "message"),
    [
        ("nowhere.raw", {}, "nowhere.raw.* is not there"),
        (".", {}, "is not a file"),
        ("base.qcow2", {}, "is a qcow2 image"),
        ("base.raw", {"size": "1MiB"}, f"{MIB} bytes are asked for, and the image .* has {8 * MIB}"),
        ("base.raw", {"size": str(8 * MIB + 1)}, "multiple of 512"),
        ("base.raw", {"size": "big"}, "is not a size"),
    ],
)
def test_a_root_disk_that_cannot_be_is_refused(
    host: Host, tmp_path: Path, image: str, root: dict[str, Any], message: str
) -> None:
    command("qemu-img", "create", "-f", "qcow2", tmp_path / "base.qcow2", "8M")
    with pytest.raises(MicrovmError, match=message):
        host.ensure(image=str(tmp_path / image), root=root)
    assert not host.state_dir.exists()


# ---- Data disks ----


def test_a_data_disk_keeps_what_is_in_it(host: Host) -> None:
    data = [{"name": "db", "size": "10MiB"}]
    made = host.ensure(data=data)
    path = Path(made.facts["disks"][-1]["path"])
    assert made.facts["disks"][-1] == {
        "id": "data-db",
        "path": str(path),
        "image_type": "qcow2",
        "readonly": False,
        "backing_files": False,
        "serial": "data-db",
        "size": str(10 * MIB),
    }
    command("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 2M", path)
    before = host.files()
    assert not host.ensure(data=data).changed and host.files() == before
    assert host.ensure(data=[{"name": "db", "size": "30MiB"}]).changed
    assert info(path)["virtual-size"] == 30 * MIB
    read = command("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x5a 1M 2M", "-c", "read -P 0 10M 20M", path)
    assert "verification failed" not in read and read.count("read ") == 2
    before = host.files()
    with pytest.raises(MicrovmError, match=f"{10 * MIB} .*{30 * MIB}.*never shrunk"):
        host.ensure(data=data)
    dropped = host.ensure()
    assert dropped.facts["unused_data"] == [str(path)] and host.files() == before
    lock = locked(path, fcntl.F_WRLCK)
    left_to_its_vm = host.ensure(data=[{"name": "db", "size": "40MiB"}])
    os.close(lock)
    assert not left_to_its_vm.changed and host.files() == before
    assert left_to_its_vm.facts["disks"][-1]["size"] == str(40 * MIB)


def test_a_data_disk_is_raw_where_that_is_asked_for(host: Host) -> None:
    data = [{"name": "db", "size": "10MiB", "format": "raw"}]
    made = host.ensure(data=data).facts["disks"][-1]
    path = Path(made["path"])
    assert (path.name, made["image_type"]) == ("data-db.raw", "raw")
    assert path.stat().st_size == 10 * MIB and path.stat().st_blocks * 512 < MIB
    assert not host.ensure(data=data).changed
    assert host.ensure(data=[{**data[0], "size": "30MiB"}]).changed
    assert path.stat().st_size == 30 * MIB
    with pytest.raises(MicrovmError, match=f"'{path}' is there, and another format is asked for"):
        host.ensure(data=[{"name": "db", "size": "30MiB"}])
    assert host.ensure().facts["unused_data"] == [str(path)]
    assert "removed data-db.raw" in host.ensure(state="absent").actions
    assert not host.directory.exists()


def test_two_runs_at_once_make_one_data_disk(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run makes the disk, and its guest writes to it, after this one has planned to."""
    data = [{"name": "db", "size": "10MiB"}]
    create = vm_disks.qemu_img.create

    def overtaken(runner: Any, path: Path, *what: Any) -> None:
        create(runner, path, *what)
        (host.directory / "data-db.qcow2").write_bytes(b"the other run's")

    monkeypatch.setattr(vm_disks.qemu_img, "create", overtaken)
    with pytest.raises(MicrovmError, match="another run"):
        host.ensure(data=data)
    assert (host.directory / "data-db.qcow2").read_bytes() == b"the other run's"
    assert not list(host.directory.glob(".data*"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"name": "Db", "size": "1MiB"}], "does not name a data disk"),
        ([{"name": "a" * 16, "size": "1MiB"}], "does not name a data disk"),
        ([{"name": "../x", "size": "1MiB"}], "does not name a data disk"),
        ([{"name": "db", "size": "0"}], "multiple of 512"),
        ([{"name": "db", "size": "1MiB"}, {"name": "db", "size": "2MiB"}], "stands twice"),
    ],
)
def test_a_data_disk_that_cannot_be_is_refused(host: Host, data: list[dict[str, str]], message: str) -> None:
    with pytest.raises(MicrovmError, match=message):
        host.ensure(data=data)
    assert not host.state_dir.exists()


# ---- CIDATA and service disks ----


@pytest.fixture
def service(tmp_path: Path) -> dict[str, Any]:
    keys = tmp_path / "keys"
    (keys / "a/b/c").mkdir(parents=True)
    (keys / "a/b/c/key.pem").write_bytes(b"secret key")
    (tmp_path / "server").write_bytes(os.urandom(100_000))
    return {"binary": str(tmp_path / "server"), "keystore": str(keys), "remote_src": True}


def read_back(image: Path, path: str) -> bytes:
    return subprocess.run(["mtype", "-i", str(image), f"::/{path}"], check=True, capture_output=True).stdout


def test_the_images_hold_what_was_given_and_change_with_it_only(host: Host, service: dict[str, Any]) -> None:
    options = {
        "cidata": {"user_data": "#cloud-config\n", "meta_data": "{}", "network_config": "version: 2\n"},
        "service": service | {"launch": {"arguments": ["-v"], "environment": {"A": "it's"}}},
    }
    outcome = host.ensure(**options)
    assert [disk["id"] for disk in outcome.facts["disks"]] == ["root", "cidata", "service"]
    assert [disk["readonly"] for disk in outcome.facts["disks"]] == [False, True, True]
    cidata, image = host.directory / "cidata.img", host.directory / "service.img"
    for path, label in ((cidata, "CIDATA"), (image, "SERVICEDISK")):
        assert command("blkid", "-o", "value", "-s", "LABEL", path) == f"{label}\n"
        assert path.stat().st_mode & 0o777 == 0o600
        command("fsck.vfat", "-n", path)
    assert read_back(cidata, "network-config") == b"version: 2\n"
    assert read_back(image, "service") == Path(service["binary"]).read_bytes()
    assert read_back(image, "keystore/a/b/c/key.pem") == b"secret key"
    assert read_back(image, "launch").startswith(b"#!/bin/sh\n")

    before = host.files()
    assert not host.ensure(**options).changed and host.files() == before

    keys = Path(service["keystore"])
    (keys / "new").write_bytes(b"1")
    (keys / "a/b/c/key.pem").write_bytes(b"another key")
    asked = host.ensure(check_mode=True, **options)
    assert host.files() == before
    outcome = host.ensure(**options)
    assert (outcome.before, outcome.after, outcome.actions) == (asked.before, asked.after, asked.actions)
    assert outcome.after == {
        "service": {"added": ["keystore/new"], "removed": [], "changed": ["keystore/a/b/c/key.pem"]}
    }
    assert host.files()["cidata.img"] == before["cidata.img"]
    assert read_back(image, "keystore/a/b/c/key.pem") == b"another key"


@pytest.mark.parametrize("harm", ["missing", "touched", "no record", "readable"])
def test_an_image_that_was_harmed_is_built_anew(host: Host, service: dict[str, Any], harm: str) -> None:
    host.ensure(service=service)
    image, record = host.directory / "service.img", host.directory / "disks.json"
    content = image.read_bytes()
    match harm:
        case "missing":
            image.unlink()
        case "touched":
            with image.open("r+b") as file:
                file.write(b"x")
        case "no record":
            record.unlink()
        case "readable":
            image.chmod(0o644)
    assert host.ensure(service=service).changed
    assert image.read_bytes() == content and image.stat().st_mode & 0o777 == 0o600
    assert not host.ensure(service=service).changed


def test_an_image_that_is_not_asked_for_any_more_goes(host: Host, service: dict[str, Any]) -> None:
    """Its keys would otherwise lie on the host for as long as the VM lives."""
    host.ensure(service=service)
    asked = host.ensure(check_mode=True)
    assert asked.changed and (host.directory / "service.img").exists()
    assert host.ensure().actions == asked.actions == ("removed service.img",)
    assert not (host.directory / "service.img").exists()
    assert not host.ensure().changed


def test_a_source_that_cannot_be_is_refused(host: Host, service: dict[str, Any]) -> None:
    keys = Path(service["keystore"])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"binary": "/nowhere/server"}, "/nowhere/server.*cannot be read"),
        ({"binary": str(keys)}, "is a directory"),
        ({"keystore": service["binary"]}, "is a file"),
        ({"launch": {"environment": {"1A": "x"}}}, "not a variable's name"),
        ({"launch": {"environment": {"A": "secret\0"}}}, "^(?!.*secret).*NUL"),
        ({"launch": {"environment": {"A": True}}}, "in quotes"),
        ({"launch": {"arguments": [1.10]}}, "in quotes"),
        ({"launch": {"arguments": ["\ud800"]}}, "not text"),
        ({"launch": {"workdir": "srv"}}, "absolute"),
    ]
    for options, message in cases:
        with pytest.raises(MicrovmError, match=message):
            host.ensure(service=service | options)
    for make, message in (
        (lambda path: path.symlink_to("/etc/shadow"), "link.*neither a file nor a directory"),
        (os.mkfifo, "link.*neither a file nor a directory"),
        (lambda path: (path.with_name("Link").touch(), path.touch()), "[Ll]ink"),
    ):
        make(keys / "link")
        with pytest.raises(MicrovmError, match=message):
            host.ensure(service=service)
        (keys / "link").unlink()
    (keys / "Link").unlink()
    (keys / "linked").symlink_to("/etc")
    with pytest.raises(MicrovmError, match="linked.*neither a file nor a directory"):
        host.ensure(service=service)
    assert not host.state_dir.exists()


# ---- Removal ----


def test_absent_removes_this_vms_disks_and_nothing_else(host: Host, service: dict[str, Any]) -> None:
    options = {"service": service, "data": [{"name": "db", "size": "1MiB"}]}
    host.ensure(**options)
    (host.directory / ".data-db.qcow2.abcd1234").write_bytes(b"a killed run's")
    (host.directory / "vm.json").write_bytes(b"{}")
    vms = host.state_dir / "vms"
    (vms / "web-1").mkdir()
    (vms / "web-1" / "root.raw").write_bytes(b"x")
    for name in ("data-db.qcow2", "service.img"):
        lock = locked(host.directory / name, fcntl.F_RDLCK)
        with pytest.raises(MicrovmError, match=f"{name}.*stop the VM first"):
            host.ensure(state="absent")
        os.close(lock)
    before = host.files()
    assert host.ensure(state="absent", check_mode=True).changed and host.files() == before
    assert host.ensure(state="absent").changed
    assert [path.name for path in host.directory.iterdir()] == ["vm.json"]
    (host.directory / "vm.json").unlink()
    host.ensure(state="absent")
    assert not host.directory.exists() and (vms / "web-1" / "root.raw").exists()
    assert not host.ensure(state="absent").changed
