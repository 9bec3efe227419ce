# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a VMM sends of its guest, in frames: its length before each part. An empty one says that the VMM has ended. Pure."""

from __future__ import annotations

import struct

_LENGTH = struct.Struct(">I")
LEFT = _LENGTH.pack(0)


def framed(data: bytes) -> tuple[bytes, bool]:
    """Return a frame, and that more may come, as a filter of relay.py."""
    return _LENGTH.pack(len(data)) + data, False


class Frames:
    """Takes frames apart, as a filter of relay.py; ``left`` is whether the last has come."""

    def __init__(self) -> None:
        self.left = False
        self._header = b""
        self._missing = 0

    def __call__(self, data: bytes) -> tuple[bytes, bool]:
        """Return what the frames hold that have come, and whether the last was among them."""
        content = bytearray()
        while data and not self.left:
            if self._missing:
                content += data[: self._missing]
                data, self._missing = data[self._missing :], max(0, self._missing - len(data))
                continue
            needed = _LENGTH.size - len(self._header)
            self._header, data = self._header + data[:needed], data[needed:]
            if len(self._header) == _LENGTH.size:
                (self._missing,) = _LENGTH.unpack(self._header)
                self._header, self.left = b"", self._missing == 0
        return bytes(content), self.left
