# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import http.server
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import download
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError

BODY = os.urandom(300_000)
# ansible-test finds the collection by an importer of its own, which a child process does not have.
CHILD = {**os.environ, "PYTHONPATH": str(Path(download.__file__).parents[5])}


class Handler(http.server.BaseHTTPRequestHandler):
    """Does what the test's ``answer`` does; each request's range is noted."""

    server: Server

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        self.server.answer(self)

    def log_message(self, *_: object) -> None:
        pass

    def unframed(self, body: bytes) -> None:
        """Answer without a length: the body ends where the connection does."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def chunked(self, *chunks: bytes, end: bytes = b"0\r\n\r\n") -> None:
        """Answer in chunks (RFC 9112, section 7.1)."""
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.wfile.write(end)

    def redirect(self, place: str, status: int = 302) -> None:
        self._send(status, b"", 0, None, {"Location": place})

    def whole(self, body: bytes, *, cut: int | None = None, **headers: str) -> None:
        self._send(200, body, len(body), cut, headers)

    def part(self, body: bytes, *, cut: int | None = None, **headers: str) -> None:
        """Answer as a server that knows ranges does."""
        asked = self.headers.get("Range")
        condition = self.headers.get("If-Range")
        if asked is None or (condition is not None and condition != headers.get("ETag")):
            self.whole(body, cut=cut, **headers)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            self._send(416, b"", 0, None, {"Content-Range": f"bytes */{len(body)}"})
            return
        headers = {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        self._send(206, body[start:], len(body) - start, cut, headers)

    def _send(self, status: int, body: bytes, length: int, cut: int | None, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "http" if tls is None else "https"
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.ranges: list[str | None] = []
        self.answer: Callable[[Handler], None] = lambda request: request.whole(BODY)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/disk.img"

    @contextmanager
    def serving(self) -> Iterator[Server]:
        with self:
            threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
            try:
                yield self
            finally:
                self.shutdown()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().serving() as server:
        yield server


@pytest.fixture
def secure(tls: ssl.SSLContext) -> Iterator[Server]:
    with Server(tls).serving() as server:
        yield server


def fetch(server: Server, part: Path, *, verified: bool = True) -> None:
    download.fetch(server.url, part, timeout=5, verified=verified, pause=0)


def test_a_whole_file(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == BODY
    assert server.ranges == [None]


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.answer = lambda request: request.part(BODY, cut=100_000, ETag='"1"')
    fetch(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_a_later_run_goes_on_too(server: Server, tmp_path: Path) -> None:
    def breaks(request: Handler) -> None:
        if len(server.ranges) == 1:
            request.part(BODY, cut=100_000, ETag='"1"')
        else:
            request.send_error(503)

    server.answer = breaks
    with pytest.raises(MicrovmError, match="after 5 tries: the server answered 503"):
        fetch(server, tmp_path / "part")
    server.answer = lambda request: request.part(BODY, ETag='"1"')
    fetch(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == BODY
    assert server.ranges[-1] == "bytes=100000-"


def test_a_file_that_changed_meanwhile_is_not_mixed(server: Server, tmp_path: Path) -> None:
    other = os.urandom(len(BODY))

    def changes(request: Handler) -> None:
        if len(server.ranges) == 1:
            request.part(BODY, cut=100_000, ETag='"1"')
        else:
            request.part(other, ETag='"2"')

    server.answer = changes
    fetch(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == other


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.answer = lambda request: request.whole(BODY, cut=100_000 if len(server.ranges) == 1 else None)
    fetch(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == BODY


def test_what_is_whole_already_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    server.answer = lambda request: request.part(BODY, ETag='"1"')
    fetch(server, tmp_path / "part")
    fetch(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == BODY
    assert server.ranges == [None, f"bytes={len(BODY)}-"]


def test_a_server_that_always_breaks_somewhere_else_is_given_up(server: Server, tmp_path: Path) -> None:
    cuts = [50_000, 40_000]
    server.answer = lambda request: request.whole(
        BODY, cut=cuts[len(server.ranges) % 2] if len(server.ranges) < 40 else None
    )
    with pytest.raises(MicrovmError, match=f"the connection ended after [45]0000 of {len(BODY)} bytes"):
        fetch(server, tmp_path / "part")


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_an_answer_that_will_not_change_is_not_asked_for_again(server: Server, tmp_path: Path, status: int) -> None:
    server.answer = lambda request: request.send_error(status)
    with pytest.raises(MicrovmError, match=f"disk.img' cannot be fetched: the server answered {status}"):
        fetch(server, tmp_path / "part")
    assert len(server.ranges) == 1
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/disk.img"
    with pytest.raises(MicrovmError, match="after 5 tries: Connection refused"):
        download.fetch(url, tmp_path / "part", timeout=5, verified=True, pause=0)


def test_a_reset_while_reading_is_met_with_another_try(server: Server, tmp_path: Path) -> None:
    def resets(request: Handler) -> None:
        if len(server.ranges) > 1:
            request.part(BODY, ETag='"1"')
            return
        request.part(BODY, cut=100_000, ETag='"1"')
        request.wfile.flush()
        # Closing with linger 0 sends RST instead of FIN.
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        request.connection.close()

    server.answer = resets
    fetch(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == BODY


def test_a_full_disk_is_said_and_gives_its_room_back(server: Server, tmp_path: Path) -> None:
    # A limit on the file's size stands for the full disk: write(2) fails in the same place.
    program = f"""
import resource, signal, sys
from pathlib import Path
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import download
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
download.fetch({server.url!r}, Path({str(tmp_path / "part")!r}), timeout=5, verified=True, pause=0)
"""
    done = subprocess.run([sys.executable, "-c", program], env=CHILD, capture_output=True, text=True, check=False)
    assert "cannot be written to" in done.stderr
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_memory_stays_flat(server: Server, tmp_path: Path) -> None:
    block = bytes(1 << 20)

    def long(request: Handler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(200 << 20))
        request.end_headers()
        for _number in range(200):
            request.wfile.write(block)

    server.answer = long
    program = f"""
import resource
from pathlib import Path
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import download
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
download.fetch({server.url!r}, Path({str(tmp_path / "part")!r}), timeout=5, verified=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], env=CHILD, capture_output=True, text=True, check=True)
    assert (tmp_path / "part").stat().st_size == 200 << 20
    assert int(done.stdout) < 30 << 10, "KiB"


def test_text(server: Server) -> None:
    server.answer = lambda request: request.whole(b"sums\n")
    assert download.text(server.url, timeout=5) == "sums\n"


def test_a_text_that_is_too_long_is_refused(server: Server) -> None:
    server.answer = lambda request: request.whole(bytes(2 << 20))
    with pytest.raises(MicrovmError, match="which is no list of checksums"):
        download.text(server.url, timeout=5)


def test_a_text_that_is_cut_short_is_refused(server: Server) -> None:
    server.answer = lambda request: request.whole(b"sums\n" * 100, cut=7)
    with pytest.raises(MicrovmError, match="the connection ended"):
        download.text(server.url, timeout=5)


# ---- What is no use without a checksum ----


def test_a_body_of_unknown_length_needs_a_checksum(server: Server, tmp_path: Path) -> None:
    server.answer = lambda request: request.unframed(BODY)
    with pytest.raises(MicrovmError, match="the server does not say how long '.*/disk.img' is.* give its checksum"):
        fetch(server, tmp_path / "part", verified=False)
    assert not (tmp_path / "part").exists()
    fetch(server, tmp_path / "part", verified=True)
    assert (tmp_path / "part").read_bytes() == BODY


def test_a_body_in_chunks_says_where_it_ends(server: Server, tmp_path: Path) -> None:
    server.answer = lambda request: request.chunked(BODY[:1000], BODY[1000:])
    fetch(server, tmp_path / "part", verified=False)
    assert (tmp_path / "part").read_bytes() == BODY


def test_a_body_in_chunks_that_is_cut_short_is_not_taken(server: Server, tmp_path: Path) -> None:
    server.answer = lambda request: request.chunked(BODY[:1000], end=b"")
    with pytest.raises(MicrovmError, match="after 5 tries"):
        fetch(server, tmp_path / "part", verified=False)


def test_two_versions_are_not_put_together_where_nothing_would_show_it(server: Server, tmp_path: Path) -> None:
    other = os.urandom(len(BODY))

    def changes(request: Handler) -> None:
        # A server that names no version goes on with any.
        if len(server.ranges) == 1:
            request.part(BODY, cut=1000)
        else:
            request.part(other)

    server.answer = changes
    fetch(server, tmp_path / "part", verified=False)
    assert (tmp_path / "part").read_bytes() == other
    assert server.ranges == [None, None]


# ---- Redirects ----


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(server: Server, tmp_path: Path, status: int) -> None:
    server.answer = lambda request: (
        request.whole(BODY) if request.path == "/a%20b" else request.redirect("/a b", status=status)
    )
    fetch(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == BODY


def test_a_redirect_from_https_to_https_is_followed(secure: Server, tmp_path: Path) -> None:
    secure.answer = lambda request: request.whole(BODY) if request.path == "/there" else request.redirect("/there")
    fetch(secure, tmp_path / "part", verified=False)
    assert (tmp_path / "part").read_bytes() == BODY


@pytest.mark.parametrize("verified", [True, False])
def test_a_redirect_from_https_to_http_is_refused(
    secure: Server, server: Server, tmp_path: Path, verified: bool
) -> None:
    secure.answer = lambda request: request.redirect(server.url)
    with pytest.raises(MicrovmError, match=f"'{secure.url}' redirects to '{server.url}'.*stays with https"):
        fetch(secure, tmp_path / "part", verified=verified)
    assert (server.ranges, list(tmp_path.iterdir())) == ([], []), "not even asked"


def test_a_way_over_http_and_back_is_refused_too(secure: Server, server: Server, tmp_path: Path) -> None:
    secure.answer = lambda request: request.whole(BODY) if request.path == "/there" else request.redirect(server.url)
    server.answer = lambda request: request.redirect(secure.url.replace("disk.img", "there"))
    with pytest.raises(MicrovmError, match="stays with https"):
        fetch(secure, tmp_path / "part")


def test_a_list_of_checksums_does_not_leave_https(secure: Server, server: Server) -> None:
    secure.answer = lambda request: request.redirect(server.url)
    with pytest.raises(MicrovmError, match="stays with https"):
        download.text(secure.url, timeout=5)


def test_a_redirect_to_the_hosts_own_files_is_refused(server: Server, tmp_path: Path) -> None:
    server.answer = lambda request: request.redirect("file:///etc/shadow")
    with pytest.raises(MicrovmError, match="redirects to 'file:///etc/shadow'|cannot be fetched"):
        fetch(server, tmp_path / "part")
    assert list(tmp_path.iterdir()) == []


def test_redirects_in_a_circle_end(server: Server, tmp_path: Path) -> None:
    server.answer = lambda request: request.redirect(server.url)
    with pytest.raises(MicrovmError, match="redirects more than 10 times"):
        fetch(server, tmp_path / "part")


def test_a_certificate_that_is_not_trusted_is_said(
    secure: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(MicrovmError, match="(?i)certificate"):
        fetch(secure, tmp_path / "part")
