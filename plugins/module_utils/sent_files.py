# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that the controller sent in one archive."""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import MicrovmError

_DIGEST = re.compile(r"[0-9a-f]{64}")


@contextmanager
def unpacked(archive: str | None, below: Path) -> Iterator[Path | None]:
    """Yield a directory, made in ``below``, with the archive's files, or None where there is no archive.

    Each file is named by its digest. The directory goes with the block, since it holds keys. Raises MicrovmError for an
    archive that holds anything else.
    """
    if archive is None:
        yield None
        return
    with tempfile.TemporaryDirectory(dir=below) as directory:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if _DIGEST.fullmatch(member.name) else None
                if file is None:
                    raise MicrovmError(f"the archive from the controller holds {member.name!r}, which is not a digest")
                with Path(directory, member.name).open("xb") as target:
                    while part := file.read(1 << 20):
                        target.write(part)
        yield Path(directory)
