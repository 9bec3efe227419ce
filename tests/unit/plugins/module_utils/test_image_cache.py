# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import download, image_cache
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner

MIB = 1 << 20
qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


class Quiet(http.server.SimpleHTTPRequestHandler):
    requests: list[str] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The URL of a server of ``tmp_path / "web"``."""
    (tmp_path / "web").mkdir()
    Quiet.requests = []
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "fetch", functools.partial(download.fetch, pause=0))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(MIB))
    return path


def qcow2(path: Path, *, size: int = MIB) -> bytes:
    """Make a qcow2 image of random content; return the content."""
    content = os.urandom(size)
    plain = path.with_suffix(".plain")
    plain.write_bytes(content)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(plain), str(path)], check=True)
    plain.unlink()
    return content


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ensure(tmp_path: Path, *items: dict[str, Any], check_mode: bool = False) -> list[Outcome | MicrovmError]:
    outcomes = image_cache.ensure(items, state_dir=tmp_path / "state", runner=HostRunner(), check_mode=check_mode)
    return list(outcomes.values())


def done(outcome: Outcome | MicrovmError) -> Outcome:
    assert isinstance(outcome, Outcome), outcome
    return outcome


def failed(outcome: Outcome | MicrovmError) -> str:
    assert isinstance(outcome, MicrovmError), outcome
    return str(outcome)


def files(tmp_path: Path) -> set[str]:
    """Return the names in the cache, but for the index."""
    directory = tmp_path / "state/images"
    return {path.name for path in directory.iterdir()} - {"index.json"} if directory.is_dir() else set()


# ---- What is asked for ----


@pytest.mark.parametrize(("machine", "architecture"), [("x86_64", "amd64"), ("aarch64", "arm64")])
def test_the_default_image(machine: str, architecture: str) -> None:
    base = "https://cloud-images.ubuntu.com/releases/noble/release"
    name = f"ubuntu-24.04-server-cloudimg-{architecture}"
    wanted = image_cache.parse({"name": "ubuntu"}, machine=machine)
    assert [(source.part, source.src, source.checksum.listed_at) for source in wanted.sources] == [
        ("disk", f"{base}/{name}.img", f"{base}/SHA256SUMS"),
        ("kernel", f"{base}/unpacked/{name}-vmlinuz-generic", f"{base}/unpacked/SHA256SUMS"),
        ("initramfs", f"{base}/unpacked/{name}-initrd-generic", f"{base}/unpacked/SHA256SUMS"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": {"src": "/boot/vmlinuz"}}, "option 'disk': is missing"),
        ({"disk": {"src": "disk.raw"}}, "option 'disk.src': 'disk.raw' is neither"),
        ({"disk": {"src": "ftp://host/disk.raw"}}, "option 'disk.src': 'ftp://host/disk.raw' is neither"),
        ({"disk": {"src": "http://host/disk.raw"}}, "option 'disk.checksum': .* plain http"),
        ({"disk": {"src": "/disk.raw", "checksum": "md5:1"}}, "option 'disk.checksum'"),
        ({"disk": {"src": "/disk.raw"}, "size": "large"}, "option 'size'"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MicrovmError, match=message):
        image_cache.parse({"name": "a", **options}, machine="x86_64")
    assert "image 'a'" in failed(ensure(tmp_path, {"name": "a", **options})[0])
    assert files(tmp_path) == set()


# ---- Files of the host ----


def test_a_raw_disk_of_the_host_is_copied_and_grown(tmp_path: Path, raw: Path) -> None:
    options = {"name": "a", "disk": {"src": str(raw)}, "kernel": {"src": str(raw)}, "size": "4MiB"}
    before = raw.read_bytes()
    first = done(ensure(tmp_path, options)[0])
    disk, kernel = Path(first.facts["disk"]), Path(first.facts["kernel"])
    assert first.changed
    assert disk.read_bytes() == before + bytes(3 * MIB)
    assert kernel.read_bytes() == raw.read_bytes() == before
    assert first.facts["initramfs"] is first.facts["firmware"] is None
    assert first.facts["digests"] == {"disk": sha256(raw), "kernel": sha256(raw)}
    assert raw.stat().st_ino not in (disk.stat().st_ino, kernel.stat().st_ino)

    again = done(ensure(tmp_path, options)[0])
    assert not again.changed
    assert again.facts == first.facts


def test_check_mode_answers_what_the_run_does(tmp_path: Path, raw: Path) -> None:
    options = {"name": "a", "disk": {"src": str(raw)}, "kernel": {"src": str(raw)}, "size": "4MiB"}
    asked = done(ensure(tmp_path, options, check_mode=True)[0])
    assert files(tmp_path) == set()
    assert asked == done(ensure(tmp_path, options)[0])
    assert not done(ensure(tmp_path, options, check_mode=True)[0]).changed


def test_the_default_size(tmp_path: Path, raw: Path) -> None:
    disk = Path(done(ensure(tmp_path, {"name": "a", "disk": {"src": str(raw)}})[0]).facts["disk"])
    assert disk.stat().st_size == 20 << 30
    assert disk.stat().st_blocks * 512 < 4 * MIB, "sparse"


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_disk_does_not_shrink(tmp_path: Path, raw: Path, check_mode: bool) -> None:
    options = {"name": "a", "disk": {"src": str(raw)}, "size": "512KiB"}
    message = failed(ensure(tmp_path, options, check_mode=check_mode)[0])
    assert "option 'size'" in message
    assert "524288 bytes are asked for, and the image has 1048576" in message
    assert files(tmp_path) == set()


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_file_of_the_host_that_is_not_there(tmp_path: Path, check_mode: bool) -> None:
    message = failed(ensure(tmp_path, {"name": "a", "disk": {"src": "/nowhere"}}, check_mode=check_mode)[0])
    assert "option 'disk.src'" in message
    assert "'/nowhere' is not there" in message


def test_a_directory_is_no_disk(tmp_path: Path) -> None:
    assert "option 'disk.src'" in failed(ensure(tmp_path, {"name": "a", "disk": {"src": str(tmp_path)}})[0])


def test_one_failure_does_not_stop_the_others(tmp_path: Path, raw: Path) -> None:
    outcomes = ensure(tmp_path, {"name": "a", "disk": {"src": "/nowhere"}}, {"name": "b", "disk": {"src": str(raw)}})
    assert "/nowhere" in failed(outcomes[0])
    assert done(outcomes[1]).changed


# ---- Files of a server ----


@qemu
def test_a_qcow2_image_is_fetched_verified_and_converted_once(tmp_path: Path, web: str) -> None:
    image = tmp_path / "web/disk.img"
    content = qcow2(image)
    (tmp_path / "web/SHA256SUMS").write_text(f"{sha256(image)} *disk.img\n")
    options = {
        "name": "a",
        "disk": {"src": f"{web}/disk.img", "checksum": f"sha256:{web}/SHA256SUMS"},
        "size": "4MiB",
    }
    asked = done(ensure(tmp_path, options, check_mode=True)[0])
    assert Quiet.requests == ["/SHA256SUMS"], "check mode downloads no image"
    first = done(ensure(tmp_path, options)[0])
    assert asked == first
    assert Path(first.facts["disk"]).read_bytes() == content + bytes(3 * MIB)
    assert files(tmp_path) == {Path(first.facts["disk"]).name}

    again = done(ensure(tmp_path, options)[0])
    assert (again.changed, again.facts) == (False, first.facts)
    assert Quiet.requests.count("/disk.img") == 1

    larger = done(ensure(tmp_path, {**options, "size": "8MiB"})[0])
    assert Path(larger.facts["disk"]).read_bytes() == content + bytes(7 * MIB)
    assert Quiet.requests.count("/disk.img") == 1, "another size is made from the one that is there"


def test_a_wrong_checksum(tmp_path: Path, web: str) -> None:
    (tmp_path / "web/disk.img").write_bytes(b"other")
    options = {"name": "a", "disk": {"src": f"{web}/disk.img", "checksum": f"sha256:{'a' * 64}"}}
    message = failed(ensure(tmp_path, options)[0])
    assert "option 'disk.checksum'" in message
    assert sha256(tmp_path / "web/disk.img") in message
    assert "a" * 64 in message
    assert files(tmp_path) == set()


def test_a_list_that_lacks_the_file(tmp_path: Path, web: str) -> None:
    (tmp_path / "web/SHA256SUMS").write_text(f"{'a' * 64}  other.img\n")
    options = {"name": "a", "disk": {"src": f"{web}/disk.img", "checksum": f"sha256:{web}/SHA256SUMS"}}
    assert "lists no SHA-256 of 'disk.img'" in failed(ensure(tmp_path, options)[0])
    assert "404" in failed(
        ensure(tmp_path, {**options, "disk": {**options["disk"], "checksum": f"sha256:{web}/no"}})[0]
    )  # type: ignore[dict-item]


def test_what_the_server_does_not_have(tmp_path: Path, web: str) -> None:
    options = {"name": "a", "disk": {"src": f"{web}/disk.img", "checksum": f"sha256:{'a' * 64}"}}
    message = failed(ensure(tmp_path, options)[0])
    assert f"option 'disk.src': image 'a': '{web}/disk.img' cannot be fetched: the server answered 404" in message
    assert files(tmp_path) == set()


@qemu
@pytest.mark.parametrize("kind", ["backing", "data"])
def test_an_image_that_names_another_file_is_refused(tmp_path: Path, kind: str) -> None:
    secret, image = tmp_path / "secret", tmp_path / "disk.img"
    secret.write_bytes(bytes(MIB))
    extra = {"backing": ["-b", str(secret), "-F", "raw"], "data": ["-o", f"data_file={tmp_path}/data"]}[kind]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *extra, str(image), "1M"], check=True)
    message = failed(ensure(tmp_path, {"name": "a", "disk": {"src": str(image)}})[0])
    assert "option 'disk.src'" in message
    assert {"backing": "a backing file", "data": "an external data file"}[kind] in message
    assert files(tmp_path) == set()


@qemu
def test_a_broken_qcow2_is_a_clear_error(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"QFI\xfb" + bytes(100))
    assert "image 'a'" in failed(ensure(tmp_path, {"name": "a", "disk": {"src": str(image)}})[0])
    assert files(tmp_path) == set()


@qemu
def test_two_runs_at_once_convert_once(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    qcow2(image)
    wrapper, log = tmp_path / "bin/qemu-img", tmp_path / "log"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho "$1" >>{log}\nsleep 0.2\nexec {shutil.which("qemu-img")} "$@"\n')
    wrapper.chmod(0o755)
    program = f"""
from pathlib import Path
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import image_cache
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner
item = dict(name="a", disk=dict(src={str(image)!r}), size="4MiB")
print(image_cache.ensure([item], state_dir=Path({str(tmp_path / "state")!r}), runner=HostRunner())["a"].changed)
"""
    environment = {
        **os.environ,
        "PATH": f"{wrapper.parent}:{os.environ['PATH']}",
        # ansible-test finds the collection by an importer of its own, which a child process does not have.
        "PYTHONPATH": str(Path(image_cache.__file__).parents[5]),
    }
    runs = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _number in range(2)
    ]
    assert sorted(run.communicate()[0].strip() for run in runs) == ["False", "True"]
    assert log.read_text().split().count("convert") == 1


# ---- What happens to a cache ----


@pytest.mark.parametrize("part", ["disk", "kernel"])
@pytest.mark.parametrize("harm", ["gone", "shorter"])
def test_a_file_that_was_harmed_is_made_anew(tmp_path: Path, raw: Path, part: str, harm: str) -> None:
    options = {"name": "a", "disk": {"src": str(raw)}, "kernel": {"src": str(raw)}, "size": "4MiB"}
    path = Path(done(ensure(tmp_path, options)[0]).facts[part])
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        os.truncate(path, 1000)
    assert done(ensure(tmp_path, options)[0]).changed
    assert path.read_bytes() == content
    assert not done(ensure(tmp_path, options)[0]).changed


def test_absent_keeps_what_another_image_has(tmp_path: Path, raw: Path) -> None:
    other = tmp_path / "kernel"
    other.write_bytes(b"kernel")
    both = {"disk": {"src": str(raw)}, "size": "4MiB"}
    kernel = Path(done(ensure(tmp_path, {"name": "a", **both, "kernel": {"src": str(other)}})[0]).facts["kernel"])
    disk = Path(done(ensure(tmp_path, {"name": "b", **both})[0]).facts["disk"])

    asked = done(ensure(tmp_path, {"name": "a", "state": "absent"}, check_mode=True)[0])
    assert kernel.exists()
    assert asked == done(ensure(tmp_path, {"name": "a", "state": "absent"})[0])
    assert files(tmp_path) == {disk.name}
    assert done(ensure(tmp_path, {"name": "a", "state": "absent"})[0]) == Outcome(changed=False)
    ensure(tmp_path, {"name": "b", "state": "absent"})
    assert files(tmp_path) == set()


def test_absent_takes_what_the_image_had_earlier(tmp_path: Path, raw: Path) -> None:
    ensure(tmp_path, {"name": "a", "disk": {"src": str(raw)}, "size": "4MiB"})
    ensure(tmp_path, {"name": "a", "disk": {"src": str(raw)}, "size": "8MiB"})
    ensure(tmp_path, {"name": "a", "state": "absent"})
    assert files(tmp_path) == set()


@qemu
def test_a_base_that_an_overlay_needs_is_not_removed(tmp_path: Path, raw: Path) -> None:
    disk = done(ensure(tmp_path, {"name": "a", "disk": {"src": str(raw)}, "size": "4MiB"})[0]).facts["disk"]
    overlay = tmp_path / "state/vms/web/root.qcow2"
    overlay.parent.mkdir(parents=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", str(overlay)], check=True)
    message = failed(ensure(tmp_path, {"name": "a", "state": "absent"})[0])
    assert str(overlay) in message
    assert Path(disk).exists()
    overlay.unlink()
    assert done(ensure(tmp_path, {"name": "a", "state": "absent"})[0]).changed


def test_a_broken_index_is_a_clear_error(tmp_path: Path, raw: Path) -> None:
    ensure(tmp_path, {"name": "a", "disk": {"src": str(raw)}, "size": "4MiB"})
    (tmp_path / "state/images/index.json").write_text("{")
    with pytest.raises(MicrovmError, match=r"index\.json"):
        ensure(tmp_path, {"name": "a", "disk": {"src": str(raw)}, "size": "4MiB"})


def test_modes(tmp_path: Path, raw: Path) -> None:
    facts = done(ensure(tmp_path, {"name": "a", "disk": {"src": str(raw)}, "kernel": {"src": str(raw)}})[0]).facts
    assert {os.stat(facts[part]).st_mode & 0o777 for part in ("disk", "kernel")} == {0o644}
