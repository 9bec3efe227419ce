# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is asked for as an image: its files, where they come from and how they are verified. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import checksums
from .errors import MicrovmError
from .sizes import parse_size

PARTS = ("disk", "kernel", "initramfs", "firmware")
DEFAULT_TIMEOUT = 30
_UBUNTU = "https://cloud-images.ubuntu.com/releases/noble/release"


@dataclass(frozen=True, slots=True)
class Source:
    """One file of an image: where it is, and its digest or where that is listed, as far as that was given."""

    part: str
    src: str
    checksum: checksums.Checksum | None

    @property
    def url(self) -> str | None:
        """The URL, or None for a path on the host."""
        return self.src if is_url(self.src) else None

    @property
    def path(self) -> Path:
        """The path on the host, where there is no URL."""
        return Path(self.src.removeprefix("file://"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for under one name.

    ``size`` of the disk is None where the default, or the image's own if larger, will do; with ``offline``, what a list
    of checksums said the last time will do where nobody answers.
    """

    name: str
    sources: tuple[Source, ...]
    size: int | None
    timeout: float
    offline: bool = False


def is_url(text: str) -> bool:
    """Return whether this is an http or https URL."""
    return urlsplit(text).scheme in ("http", "https")


def ubuntu(machine: str) -> dict[str, dict[str, str]]:
    """Return the options of the default image: Ubuntu 24.04's, with its unpacked kernel and initrd."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine)
    if architecture is None:
        raise MicrovmError(f"there is no default image for {machine}; give disk and kernel", option="disk")
    name = f"ubuntu-24.04-server-cloudimg-{architecture}"
    sums, unpacked_sums = f"sha256:{_UBUNTU}/SHA256SUMS", f"sha256:{_UBUNTU}/unpacked/SHA256SUMS"
    return {
        "disk": {"src": f"{_UBUNTU}/{name}.img", "checksum": sums},
        "kernel": {"src": f"{_UBUNTU}/unpacked/{name}-vmlinuz-generic", "checksum": unpacked_sums},
        "initramfs": {"src": f"{_UBUNTU}/unpacked/{name}-initrd-generic", "checksum": unpacked_sums},
    }


def parse(options: Mapping[str, Any], *, machine: str) -> Wanted:
    """Read one image's options. Raises MicrovmError for what could not be fetched or would not be safe to."""
    given = {part: options[part] for part in PARTS if options.get(part) is not None} or ubuntu(machine)
    if "disk" not in given:
        raise MicrovmError("is missing; an image without a disk has nothing for the guest's root", option="disk")
    sources = tuple(_source(part, source) for part, source in given.items())
    size = None if options.get("size") is None else parse_size(options["size"], option="size")
    if size is not None and size % 512:
        raise MicrovmError(f"{size} bytes are asked for; a disk is a multiple of 512 bytes", option="size")
    return Wanted(
        options["name"], sources, size, options.get("timeout") or DEFAULT_TIMEOUT, bool(options.get("offline"))
    )


def _source(part: str, options: Mapping[str, Any]) -> Source:
    src, text = options.get("src") or "", options.get("checksum")
    option = f"{part}.checksum"
    source = Source(part, src, None if text is None else checksums.parse(text, option=option))
    if source.url is None and not source.path.is_absolute():
        raise MicrovmError(f"{src!r} is neither an http(s) URL nor an absolute path on the host", option=f"{part}.src")
    if urlsplit(src).scheme == "http" and source.checksum is None:
        raise MicrovmError(
            f"'{src}' comes over plain http, where anyone on the way can change it; give a checksum, or use https",
            option=option,
        )
    listed_at = "" if source.checksum is None else source.checksum.listed_at or ""
    if urlsplit(listed_at).scheme == "http":
        raise MicrovmError(
            f"'{listed_at}' comes over plain http, where anyone on the way can change it, and so vouches for nothing; "
            "give the digest itself, or a list on the host or over https",
            option=option,
        )
    return source
