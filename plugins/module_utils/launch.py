# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The launch script: what the guest runs to start its service. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import MicrovmError

# Where the guest mounts the service disk.
MOUNT = "/srv"
# POSIX, Base Definitions, section 8.1, but for the lower case that it leaves to applications.
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def render(
    *, arguments: Iterable[Any] = (), environment: Mapping[str, Any] | None = None, workdir: str | None = None
) -> bytes:
    """Return a POSIX shell script that becomes the service, with these arguments and variables exactly as written.

    Raises MicrovmError for a name that is no variable's, and for a value that no process can be given.
    """
    lines = ["#!/bin/sh", "set -eu"]
    # env sets them, since a shell keeps some for itself: UID is read-only, RANDOM changes, OPTIND has to be a number.
    words = ["exec", "env"] if environment else ["exec"]
    for name, value in (environment or {}).items():
        if not _VARIABLE.fullmatch(name):
            raise MicrovmError(
                f"{name!r} is not a variable's name: use letters, digits and '_', with no digit first",
                option="service.launch.environment",
            )
        words.append(f"{name}={_word(value, option='service.launch.environment', what=name)}")
    if workdir is not None:
        if not workdir.startswith("/"):
            raise MicrovmError(
                f"{workdir!r} is not absolute; write the directory's path in the guest from '/' on",
                option="service.launch.workdir",
            )
        lines.append(f"cd -- {_word(workdir, option='service.launch.workdir', what='it')}")
    words.append(f"{MOUNT}/service")
    words += [
        _word(value, option="service.launch.arguments", what=f"argument {position}")
        for position, value in enumerate(arguments)
    ]
    lines.append(" ".join(words))
    return "\n".join([*lines, ""]).encode("utf-8", "surrogateescape")


def _word(value: Any, *, option: str, what: str) -> str:
    # The value itself stays out of the messages: it may be a secret.
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise MicrovmError(f"{what} is a {type(value).__name__}; write it as a string, in quotes", option=option)
    text = str(value)
    if "\0" in text:
        raise MicrovmError(f"{what} has a NUL character, which no process can be given", option=option)
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise MicrovmError(f"{what} is not text: a surrogate in it stands alone", option=option) from error
    return shlex.quote(text)
