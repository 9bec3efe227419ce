# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import download, image_cache, image_request
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner

MIB = 1 << 20
pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


class Quiet(http.server.SimpleHTTPRequestHandler):
    requests: list[str] = []
    # After how many bytes of a file the connection breaks.
    cut: int | None = None
    # Whether it takes connections and never says anything.
    away = False

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.away:
            self.close_connection = True
        else:
            super().do_GET()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read(self.cut))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path, tls: ssl.SSLContext) -> Iterator[str]:
    """The https URL of a server of ``tmp_path / "web"``."""
    (tmp_path / "web").mkdir()
    Quiet.requests, Quiet.cut, Quiet.away = [], None, False
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}"
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
    wanted = image_request.parse({"name": "ubuntu"}, machine=machine)
    assert [(source.part, source.src, source.checksum and source.checksum.listed_at) for source in wanted.sources] == [
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
        (
            {"disk": {"src": "https://host/disk.raw", "checksum": "sha256:http://host/SHA256SUMS"}},
            "option 'disk.checksum': 'http://host/SHA256SUMS' comes over plain http",
        ),
        ({"disk": {"src": "/disk.raw"}, "size": "large"}, "option 'size'"),
        ({"disk": {"src": "/disk.raw"}, "size": "1000"}, "option 'size': 1000 bytes .* multiple of 512"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MicrovmError, match=message):
        image_request.parse({"name": "a", **options}, machine="x86_64")
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


def test_what_a_list_had_the_last_time_counts_where_nobody_answers_and_that_is_asked_for(
    tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, sums = tmp_path / "web/disk.img", tmp_path / "web/SHA256SUMS"
    qcow2(image)
    sums.write_text(f"{sha256(image)} *disk.img\n")
    options = {"name": "a", "disk": {"src": f"{web}/disk.img", "checksum": f"sha256:{web}/SHA256SUMS"}}
    offline = {**options, "offline": True}
    Quiet.away = True
    assert "with 'offline'" not in failed(ensure(tmp_path, options)[0])
    assert "cannot be fetched" in failed(ensure(tmp_path, offline)[0])
    Quiet.away = False
    first = done(ensure(tmp_path, offline)[0])
    assert first.facts["stale"] == []

    Quiet.away = True
    assert "with 'offline', the digest that was listed the last time would count" in failed(
        ensure(tmp_path, options)[0]
    )
    for check_mode in (True, False):
        again = done(ensure(tmp_path, offline, check_mode=check_mode)[0])
        assert (again.changed, again.facts["disk"]) == (False, first.facts["disk"])
        (words,) = again.facts["stale"]
        assert f"{web}/SHA256SUMS" in words and sha256(image) in words
    other = {**offline["disk"], "src": f"{web}/other.img"}  # type: ignore[dict-item]
    assert "cannot be fetched" in failed(ensure(tmp_path, {**offline, "disk": other})[0])

    Quiet.away = False
    qcow2(image)
    sums.write_text(f"{sha256(image)} *disk.img\n")
    newer = done(ensure(tmp_path, offline)[0])
    assert (newer.changed, newer.facts["stale"]) == (True, [])
    sums.unlink()
    assert "404" in failed(ensure(tmp_path, offline)[0])
    monkeypatch.delenv("SSL_CERT_FILE")
    assert "certificate" in failed(ensure(tmp_path, offline)[0]).lower()


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


def slow_qemu_img(directory: Path, seconds: float) -> dict[str, str]:
    """Return an environment in which each run of qemu-img takes so long, and is noted in ``log``."""
    wrapper = directory / "bin/qemu-img"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\necho "$1" >>{directory}/log\nsleep {seconds}\nexec {shutil.which("qemu-img")} "$@"\n'
    )
    wrapper.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{wrapper.parent}:{os.environ['PATH']}",
        # ansible-test finds the collection by an importer of its own, which a child process does not have.
        "PYTHONPATH": str(Path(image_cache.__file__).parents[5]),
    }


def program(tmp_path: Path, image: Path) -> list[str]:
    """Return a program that makes an image and prints whether that changed something."""
    code = f"""
from pathlib import Path
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import image_cache
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import HostRunner
item = dict(name="a", disk=dict(src={str(image)!r}), size="4MiB")
print(image_cache.ensure([item], state_dir=Path({str(tmp_path / "state")!r}), runner=HostRunner())["a"].changed)
"""
    return [sys.executable, "-c", code]


def test_two_runs_at_once_convert_once(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    qcow2(image)
    environment = slow_qemu_img(tmp_path, 0.2)
    runs = [
        subprocess.Popen(program(tmp_path, image), env=environment, stdout=subprocess.PIPE, text=True)
        for _number in range(2)
    ]
    assert sorted(run.communicate()[0].strip() for run in runs) == ["False", "True"]
    assert (tmp_path / "log").read_text().split().count("convert") == 1


def test_what_a_killed_run_had_begun_is_gone_after_the_next(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    qcow2(image)
    environment = slow_qemu_img(tmp_path, 600)
    with subprocess.Popen(program(tmp_path, image), env=environment, start_new_session=True) as run:
        deadline = time.monotonic() + 60
        while not (tmp_path / "log").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGKILL)
    assert files(tmp_path) != set()
    disk = done(ensure(tmp_path, {"name": "a", "disk": {"src": str(image)}, "size": "4MiB"})[0]).facts["disk"]
    assert files(tmp_path) == {Path(disk).name}


@pytest.mark.parametrize("failure", ["missing", "cut short", "another digest", "another format", "damaged"])
def test_a_failure_leaves_the_cache_as_it_was(tmp_path: Path, web: str, raw: Path, failure: str) -> None:
    ensure(tmp_path, {"name": "kept", "disk": {"src": str(raw)}, "size": "4MiB"})
    index = tmp_path / "state/images/index.json"
    before = (files(tmp_path), index.read_bytes())
    image = tmp_path / "web/disk.img"
    content = {"another format": b"KDMV" + bytes(1000), "damaged": gzip.compress(os.urandom(1000))[:-9]}
    image.write_bytes(content.get(failure, os.urandom(MIB)))
    found = sha256(image)
    digest = "a" * 64 if failure == "another digest" else found
    if failure == "missing":
        image.unlink()
    elif failure == "cut short":
        Quiet.cut = 100_000
    options = {"name": "a", "disk": {"src": f"{web}/disk.img", "checksum": f"sha256:{digest}"}, "size": "4MiB"}
    message = {
        "missing": "disk.img' cannot be fetched: the server answered 404",
        "cut short": f"the connection ended after 100000 of {MIB} bytes",
        "another digest": f"has the SHA-256 {found}, and {digest} is expected",
        "another format": "disk.img' is a VMDK image",
        "damaged": "disk.img' cannot be decompressed with gzip",
    }
    assert message[failure] in failed(ensure(tmp_path, options)[0])
    left = {name for name in files(tmp_path) if name.startswith(".part-")}
    assert (files(tmp_path) - left, index.read_bytes()) == before
    # What came before the connection broke is kept for the next run, until the image is no longer asked for.
    assert bool(left) == (failure == "cut short")
    asked = done(ensure(tmp_path, {"name": "a", "state": "absent"}, check_mode=True)[0])
    assert asked == done(ensure(tmp_path, {"name": "a", "state": "absent"})[0])
    assert (files(tmp_path), asked.changed) == (before[0], bool(left))


def test_what_an_earlier_run_fetched_is_gone_on_with(tmp_path: Path, web: str, raw: Path) -> None:
    shutil.copy(raw, tmp_path / "web/disk.img")
    options = {
        "name": "a",
        "disk": {"src": f"{web}/disk.img", "checksum": f"sha256:{sha256(raw)}"},
        "size": "1MiB",
    }
    Quiet.cut = 100_000
    failed(ensure(tmp_path, options)[0])
    Quiet.cut = None
    disk = done(ensure(tmp_path, options)[0]).facts["disk"]
    assert Path(disk).read_bytes() == raw.read_bytes()
    assert files(tmp_path) == {Path(disk).name}


def test_what_came_from_another_place_goes(tmp_path: Path, web: str, raw: Path) -> None:
    shutil.copy(raw, tmp_path / "web/old.img")
    checksum = f"sha256:{sha256(raw)}"
    Quiet.cut = 100_000
    failed(ensure(tmp_path, {"name": "a", "disk": {"src": f"{web}/old.img", "checksum": checksum}, "size": "1MiB"})[0])
    assert files(tmp_path) != set()
    disk = done(ensure(tmp_path, {"name": "a", "disk": {"src": str(raw)}, "size": "1MiB"})[0]).facts["disk"]
    assert files(tmp_path) == {Path(disk).name}


def test_without_a_checksum_what_came_first_is_kept_until_it_is_lost(tmp_path: Path, web: str) -> None:
    image = tmp_path / "web/disk.img"
    first, second = os.urandom(MIB), os.urandom(MIB)
    options = {"name": "a", "disk": {"src": f"{web}/disk.img"}, "size": "1MiB"}
    image.write_bytes(first)
    disk = Path(done(ensure(tmp_path, options)[0]).facts["disk"])
    image.write_bytes(second)
    assert not done(ensure(tmp_path, options)[0]).changed
    assert (disk.read_bytes(), Quiet.requests) == (first, ["/disk.img"])

    disk.unlink()
    anew = done(ensure(tmp_path, options)[0])
    assert Path(anew.facts["disk"]).read_bytes() == second
    assert anew.facts["digests"] == {"disk": sha256(image)}
    assert done(ensure(tmp_path, options)[0]) == Outcome(
        changed=False, facts=anew.facts, before=anew.after, after=anew.after
    )


# ---- Formats ----


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
@pytest.mark.parametrize("inside", ["raw", "qcow2"])
def test_a_compressed_disk_is_decompressed(tmp_path: Path, kind: str, inside: str) -> None:
    image = tmp_path / "disk.img"
    content = os.urandom(MIB) + bytes(20 * MIB) + b"end"
    content += bytes(-len(content) % 512)
    image.write_bytes(content)
    if inside == "qcow2":
        image = tmp_path / "disk.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(tmp_path / "disk.img"), str(image)], check=True)
    subprocess.run([kind, "-q", "-k", str(image)] if kind != "gzip" else ["gzip", "-k", str(image)], check=True)
    (compressed,) = tmp_path.glob(f"{image.name}.*")
    options = {
        "name": "a",
        "disk": {"src": str(compressed), "checksum": f"sha256:{sha256(compressed)}"},
        "size": "30MiB",
    }
    asked = done(ensure(tmp_path, options, check_mode=True)[0])
    first = done(ensure(tmp_path, options)[0])
    disk = Path(first.facts["disk"])
    assert asked == first
    assert disk.read_bytes().rstrip(b"\0") == content.rstrip(b"\0")
    assert (disk.stat().st_size, disk.stat().st_blocks * 512 < 4 * MIB) == (30 * MIB, True), "sparse"
    assert (files(tmp_path), compressed.exists()) == ({disk.name}, True)
    assert not done(ensure(tmp_path, options)[0]).changed


def test_an_image_that_names_another_file_is_refused_before_any_tool_opens_it(tmp_path: Path) -> None:
    class NoTool:
        def run(self, argv: Any, **_: object) -> Any:
            raise AssertionError(argv)

    image = tmp_path / "disk.img"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", str(image), "1M"],
        check=True,
    )
    outcomes = image_cache.ensure(
        [{"name": "a", "disk": {"src": str(image)}}], state_dir=tmp_path / "state", runner=NoTool()
    )
    assert "option 'disk.src': image 'a'" in failed(outcomes["a"])
    assert "names a backing file, '/etc/shadow'" in failed(outcomes["a"])
    assert files(tmp_path) == set()


def test_a_kernel_may_be_compressed(tmp_path: Path, raw: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(gzip.compress(b"kernel"))
    options = {"name": "a", "disk": {"src": str(raw)}, "kernel": {"src": str(kernel)}, "size": "1MiB"}
    assert Path(done(ensure(tmp_path, options)[0]).facts["kernel"]).read_bytes() == kernel.read_bytes()


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
