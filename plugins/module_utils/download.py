# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Downloads that go on where a broken connection left them."""

from __future__ import annotations

import http.client
import re
import ssl
import string
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from ansible.module_utils.urls import open_url

from .errors import MicrovmError

# RFC 9110: 408 and 429 invite another try, as do the errors of the server.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10
_ATTEMPTS = 5
_CHUNK = 1 << 20
_MAX_TEXT = 1 << 20


class Unreachable(MicrovmError):
    """Nobody has answered, or not for now, which says nothing about what is asked for."""


class _Broken(Exception):
    """A try that may be worth another."""


def text(url: str, *, timeout: float) -> str:
    """Return a small text, such as a SHA256SUMS. Raises MicrovmError, Unreachable where that is all there is to it."""
    try:
        with _open(url, _headers(), timeout) as answer:
            body = b"".join(_chunks(answer, limit=_MAX_TEXT + 1))
            length = answer.headers.get("Content-Length")
            if length is not None and len(body) < min(int(length), _MAX_TEXT + 1):
                raise _Broken(f"the connection ended after {len(body)} of {length} bytes")
    except (_Broken, urllib.error.URLError, OSError, http.client.HTTPException) as error:
        kind = Unreachable if _is_passing(error) else MicrovmError
        raise kind(f"'{url}' cannot be fetched: {_reason(error)}") from error
    if len(body) > _MAX_TEXT:
        raise MicrovmError(f"'{url}' has more than {_MAX_TEXT} bytes, which is no list of checksums")
    return body.decode(errors="replace")


def fetch(url: str, part: Path, *, timeout: float, verified: bool, pause: float = 0.5) -> None:
    """Download to ``part``, in flat memory, going on from what is there already.

    ``verified``: the caller holds what comes against a checksum. Without one, nothing is taken that could be cut short
    or put together of two versions unseen.
    A connection that breaks, or a server's passing error, is met with up to 5 tries that bring no byte more, each after
    a pause that grows from ``pause`` seconds. Raises MicrovmError; what has come so far stays in ``part``, with its version
    beside it, except where the disk is full.
    """
    failures, best = 0, _size(part)
    while True:
        try:
            _go_on(url, part, timeout, verified=verified)
            return
        except _Broken as error:
            # Only what no try reached before is progress, or a server that begins anew each time would have no end.
            failures = 1 if _size(part) > best else failures + 1
            best = max(best, _size(part))
            if failures >= _ATTEMPTS:
                raise MicrovmError(f"'{url}' cannot be fetched, after {failures} tries: {error}") from error
            time.sleep(pause * 2 ** (failures - 1))


def discard(part: Path) -> None:
    """Remove what a download has left."""
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _headers(start: int = 0, version: str | None = None) -> dict[str, str]:
    # Compression on the way would make the ranges those of something else.
    headers = {"User-Agent": "microvm.cloud_hypervisor", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version is not None:
            headers["If-Range"] = version
    return headers


def _open(url: str, headers: dict[str, str], timeout: float) -> Any:
    """Open a URL and follow its redirects. Raises MicrovmError for one that leads from https to anything else."""
    place = url
    for _number in range(_MAX_REDIRECTS):
        try:
            return open_url(place, headers=headers, timeout=timeout, decompress=False, follow_redirects="none")
        except urllib.error.HTTPError as error:
            target = error.headers.get("Location")
            if error.code not in _REDIRECTS or target is None:
                raise
            error.close()
        # As urllib does: what no URL may hold is bytes that http.client has read as ISO-8859-1.
        target = quote(target, encoding="iso-8859-1", safe=string.punctuation)
        before, place = place, urljoin(place, target)
        allowed = ("https",) if urlsplit(before).scheme == "https" else ("http", "https")
        if urlsplit(place).scheme not in allowed:
            raise MicrovmError(
                f"'{before}' redirects to '{place}', and what was asked for over {urlsplit(before).scheme} is not fetched "
                f"over {urlsplit(place).scheme or 'nothing'}; give a URL that stays with https, or a plain http one and "
                "its checksum"
            )
    raise MicrovmError(f"'{url}' redirects more than {_MAX_REDIRECTS} times")


def _go_on(url: str, part: Path, timeout: float, *, verified: bool) -> None:
    start = _size(part)
    version = _version_file(part).read_text() if start and _version_file(part).exists() else None
    if version is None and not verified:
        start = 0
    try:
        with _open(url, _headers(start, version), timeout) as answer:
            at = start if _continues(answer, start) else 0
            length = answer.headers.get("Content-Length")
            if length is None and not answer.chunked and not verified:
                raise MicrovmError(
                    f"the server does not say how long '{url}' is, so that one could not see it cut short; give its checksum"
                )
            received = _save(url, answer, part, at)
            if length is not None and received < int(length):
                raise _Broken(f"the connection ended after {received} of {length} bytes")
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            if re.fullmatch(rf"bytes \*/{start}", str(error.headers.get("Content-Range", ""))):
                return
            # Longer than the file is now: begin anew.
            discard(part)
            raise _Broken("the server has less than was fetched before") from error
        if error.code in _PASSING:
            raise _Broken(_reason(error)) from error
        raise MicrovmError(f"'{url}' cannot be fetched: {_reason(error)}") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise _Broken(_reason(error)) from error


def _save(url: str, answer: Any, part: Path, at: int) -> int:
    """Write the answer's body to ``part`` from ``at`` on; return its length. On a full disk nothing is kept."""
    try:
        if at == 0:
            _note_version(part, answer.headers)
        received = 0
        with part.open("r+b" if part.exists() else "w+b") as file:
            file.seek(at)
            file.truncate()
            for chunk in _chunks(answer):
                file.write(chunk)
                received += len(chunk)
        return received
    except OSError as error:
        discard(part)
        raise MicrovmError(f"'{url}' cannot be written to '{part}': {error.strerror}") from error


def _note_version(part: Path, headers: Any) -> None:
    """Keep what If-Range can name this version by: a strong ETag or else a date (RFC 9110, section 13.1.5)."""
    etag = headers.get("ETag")
    version = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if version is None:
        _version_file(part).unlink(missing_ok=True)
    else:
        _version_file(part).write_text(version)


def _chunks(answer: Any, limit: int | None = None) -> Iterator[bytes]:
    received = 0
    while limit is None or received < limit:
        try:
            # read1 gives what has come, so that a connection that breaks takes nothing of it along.
            chunk: bytes = answer.read1(_CHUNK)
        except (http.client.HTTPException, OSError) as error:
            raise _Broken(_reason(error)) from error
        if not chunk:
            return
        received += len(chunk)
        yield chunk


def _continues(answer: Any, start: int) -> bool:
    """Return whether the answer begins where was asked; a server that knows no ranges sends all."""
    return answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-")


def _is_passing(error: BaseException) -> bool:
    """Return whether another try may go well. A certificate that is not the server's is no such thing."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _PASSING
    return not isinstance(getattr(error, "reason", error), ssl.SSLError)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(getattr(error.reason, "strerror", None) or error.reason)
    if isinstance(error, http.client.IncompleteRead):
        return f"the connection ended after {len(error.partial)} bytes of a part"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
