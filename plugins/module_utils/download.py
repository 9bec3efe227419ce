# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Downloads that go on where a broken connection left them."""

from __future__ import annotations

import http.client
import time
import urllib.error
from pathlib import Path
from typing import Any

from ansible.module_utils.urls import open_url

from .errors import MicrovmError

# RFC 9110: 408 and 429 invite another try, as do the errors of the server.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_ATTEMPTS = 5
_CHUNK = 1 << 20
_MAX_TEXT = 1 << 20


class _Broken(Exception):
    """A try that may be worth another."""


def text(url: str, *, timeout: float) -> str:
    """Return a small text, such as a SHA256SUMS. Raises MicrovmError."""
    try:
        with open_url(url, headers=_headers(), timeout=timeout, decompress=False) as answer:
            body: bytes = answer.read(_MAX_TEXT + 1)
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        raise MicrovmError(f"'{url}' cannot be fetched: {_reason(error)}") from error
    if len(body) > _MAX_TEXT:
        raise MicrovmError(f"'{url}' has more than {_MAX_TEXT} bytes, which is no list of checksums")
    return body.decode(errors="replace")


def fetch(url: str, part: Path, *, timeout: float, pause: float = 0.5) -> None:
    """Download to ``part``, in flat memory, going on from what is there already.

    A connection that breaks, or a server's passing error, is met with up to 5 tries that bring no byte more, each after
    a pause that grows from ``pause`` seconds. Raises MicrovmError; what has come so far stays in ``part``.
    """
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _go_on(url, part, before, timeout)
            return
        except _Broken as error:
            progress = part.exists() and part.stat().st_size > before
            failures = 1 if progress else failures + 1
            if failures >= _ATTEMPTS:
                raise MicrovmError(f"'{url}' cannot be fetched, after {failures} tries: {error}") from error
            time.sleep(pause * 2 ** (failures - 1))


def _headers(start: int = 0) -> dict[str, str]:
    # Compression on the way would make the ranges those of something else.
    headers = {"User-Agent": "microvm.cloud_hypervisor", "Accept-Encoding": "identity"}
    return {**headers, "Range": f"bytes={start}-"} if start else headers


def _go_on(url: str, part: Path, start: int, timeout: float) -> None:
    try:
        with open_url(url, headers=_headers(start), timeout=timeout, decompress=False) as answer:
            at = start if _continues(answer, start) else 0
            length = answer.headers.get("Content-Length")
            with part.open("r+b" if part.exists() else "w+b") as file:
                file.seek(at)
                file.truncate()
                received = 0
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    received += len(chunk)
            if length is not None and received < int(length):
                raise _Broken(f"the connection ended after {received} of {length} bytes")
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            # Longer than the file is now: begin anew.
            part.unlink()
            raise _Broken("the server has less than was fetched before") from error
        if error.code in _PASSING:
            raise _Broken(_reason(error)) from error
        raise MicrovmError(f"'{url}' cannot be fetched: {_reason(error)}") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Broken(_reason(error)) from error
    except OSError as error:
        raise MicrovmError(f"'{url}' cannot be written to '{part}': {error.strerror}") from error


def _continues(answer: Any, start: int) -> bool:
    """Return whether the answer begins where was asked; a server that knows no ranges sends all."""
    return answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-")


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(getattr(error.reason, "strerror", None) or error.reason)
    if isinstance(error, http.client.IncompleteRead):
        return f"the connection ended after {len(error.partial)} bytes of a part"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
