# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a service disk and a CIDATA disk hold, from a VM's options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import MicrovmError
from .fat_disk import Content
from .launch import render

# By source as the option names it: "" for a file, else paths below a directory; each [SHA-256, size in bytes].
Manifest = Mapping[str, tuple[str, int]]


def cidata(options: Mapping[str, Any]) -> dict[str, Content]:
    """Return the files of a CIDATA disk (cloud-init, NoCloud). Raises MicrovmError where user or meta data is missing.

    cloud-init takes the disk for a data source only if both are there.
    """
    contents = {}
    for option, name in (("user_data", "user-data"), ("meta_data", "meta-data"), ("network_config", "network-config")):
        text = options.get(option)
        if text is not None:
            contents[name] = Content.of(text.encode())
        elif option != "network_config":
            raise MicrovmError("is missing; cloud-init needs it, if only empty", option=f"cidata.{option}")
    return contents


def service(
    options: Mapping[str, Any], *, manifests: Mapping[str, Manifest] | None = None, contents: Path | None = None
) -> dict[str, Content]:
    """Return the files of a service disk: the binary, the keystore and the launch script.

    The sources lie on this host where ``options`` say ``remote_src``. Else ``manifests`` say what they hold where they
    lie, and ``contents`` is a directory with files named by their digests, as far as they are here already.
    """
    binary = options.get("binary")
    if binary is None:
        raise MicrovmError("is missing; name the program or script that the guest runs", option="service.binary")
    files = {"launch": Content.of(render(**{k: v for k, v in (options.get("launch") or {}).items() if v is not None}))}
    here = bool(options.get("remote_src"))
    for option, source, prefix in (("binary", binary, "service"), ("keystore", options.get("keystore"), "keystore")):
        if source is None:
            continue
        name = f"service.{option}"
        found = (
            _read(Path(source).expanduser(), option=name)
            if here
            else _sent(source, manifests or {}, contents, option=name)
        )
        directory = "" not in found
        if directory != (option == "keystore"):
            kind = "a directory" if directory else "a file"
            raise MicrovmError(
                f"'{source}' is {kind}; the binary is a file, and the keystore a directory", option=f"service.{option}"
            )
        for path, content in found.items():
            files[f"{prefix}/{path}" if path else prefix] = content
    return files


def _sent(source: str, manifests: Mapping[str, Manifest], contents: Path | None, *, option: str) -> dict[str, Content]:
    if source not in manifests:
        raise MicrovmError(
            f"'{source}' was not sent along by the controller; set service.remote_src where it lies on the host",
            option=option,
        )
    found = {}
    for path, (sha256, size) in manifests[source].items():
        place = contents / sha256 if contents is not None else None
        found[path] = Content(sha256, size, place if place is not None and place.exists() else None)
    return found


def _read(source: Path, *, option: str) -> dict[str, Content]:
    """Return the files at ``source`` on this host, as Manifest names them."""
    try:
        if not source.is_dir():
            return {"": Content.of_file(source)}
        found = {}
        for directory, below, names in os.walk(source, onerror=_raise):
            for name in (*below, *names):
                path = Path(directory, name)
                if path.is_symlink() or not (path.is_file() or path.is_dir()):
                    raise MicrovmError(
                        f"'{path}' is neither a file nor a directory; put a copy of what it stands for there",
                        option=option,
                    )
                if path.is_file():
                    found[str(path.relative_to(source))] = Content.of_file(path)
        return found
    except OSError as error:
        raise MicrovmError(f"'{source}' cannot be read: {error.strerror}", option=option) from error


def _raise(error: OSError) -> None:
    raise error
