# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fetching one file of an image, and holding it against its checksum."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from . import checksums, download
from .errors import MicrovmError
from .files import sha256_of
from .image_request import Source, is_url


def listed(source: Source, place: str, *, timeout: float) -> str:
    """Return the digest that the list at ``place``, a URL or path, has for the source. Raises MicrovmError."""
    option = f"{source.part}.checksum"
    try:
        if is_url(place):
            sums = download.text(place, timeout=timeout)
        else:
            sums = Path(place.removeprefix("file://")).read_text()
    except OSError as error:
        raise MicrovmError(f"'{place}' cannot be read: {error.strerror}", option=option) from error
    except MicrovmError as error:
        error.option = option
        raise
    name = urlsplit(source.src).path.rpartition("/")[2]
    found = checksums.listed(sums, name)
    if found is None:
        raise MicrovmError(f"'{place}' lists no SHA-256 of '{name}'", option=option)
    return found


def verified(source: Source, path: Path, expected: str | None) -> str:
    """Return the digest of what has come of the source; raise MicrovmError where another is ``expected``."""
    digest = sha256_of(path)
    if expected not in (None, digest):
        raise MicrovmError(
            f"'{source.src}' has the SHA-256 {digest}, and {expected} is expected; nothing was kept of it",
            option=f"{source.part}.checksum",
        )
    return digest


def download_verified(source: Source, part: Path, expected: str | None, *, timeout: float) -> str:
    """Download to ``part``, going on from what is there, and return the digest.

    Raises MicrovmError. What has come stays where a connection broke, and goes where it is of another content.
    """
    resumed = part.exists()
    try:
        download.fetch(source.src, part, timeout=timeout, verified=expected is not None)
        if resumed and expected not in (None, sha256_of(part)):
            # What an earlier run had fetched was of another content: once more, from the beginning.
            download.discard(part)
            download.fetch(source.src, part, timeout=timeout, verified=True)
    except MicrovmError as error:
        error.option = f"{source.part}.src"
        raise
    try:
        return verified(source, part, expected)
    except MicrovmError:
        download.discard(part)
        raise
