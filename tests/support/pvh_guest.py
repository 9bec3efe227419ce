# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest of some ninety bytes, that starts in milliseconds: 32-bit code in an ELF with a PVH entry point.

It prints BANNER on the serial port and echoes what it reads there, which keeps its processor busy; an idle one halts
after the banner, and only the VMM ends it; a counting one writes numbers without end, see ``numbers``. POWER_OFF ends it (Cloud Hypervisor's ACPI shutdown
device, vmm/src/vm.rs and devices/src/acpi.rs), RESET resets the machine through the keyboard controller. FILL
has it write to all of its memory from 2 MiB on, which the host so has to give it.
"""

from __future__ import annotations

import struct
from pathlib import Path

BANNER = b"pvh guest\r\n"
POWER_OFF = b"q"
RESET = b"r"
FILL = b"m"

LOAD_ADDRESS = 0x100000
FILE_OFFSET = 0x1000
NOTE_OFFSET = 0x200
XEN_ELFNOTE_PHYS32_ENTRY = 18  # include/xen/interface/elfnote.h: where a PVH guest starts, in 32-bit mode

# One instruction a line, for the flat 32-bit mode that PVH starts a guest in. A label stands before its instruction;
# an instruction that jumps is its opcode and the label, a short jump.
Code = list[str | bytes | tuple[bytes, str]]
CODE: Code = [
    b"\xbe" + struct.pack("<I", LOAD_ADDRESS + 0x80),  # mov  esi, banner
    "banner",
    b"\xac",  # lodsb
    b"\x84\xc0",  # test al, al
    (b"\x74", "read"),  # jz   read
    b"\x88\xc4",  # mov  ah, al
    b"\x66\xba\xfd\x03",  # mov  dx, 0x3fd       line status
    "banner_ready",
    b"\xec",  # in   al, dx
    b"\xa8\x20",  # test al, 0x20        transmitter empty?
    (b"\x74", "banner_ready"),  # jz   banner_ready
    b"\x88\xe0",  # mov  al, ah
    b"\x66\xba\xf8\x03",  # mov  dx, 0x3f8       data
    b"\xee",  # out  dx, al
    (b"\xeb", "banner"),  # jmp  banner
    "read",
    b"\x66\xba\xfd\x03",  # mov  dx, 0x3fd
    "read_ready",
    b"\xf3\x90",  # pause
    b"\xec",  # in   al, dx
    b"\xa8\x01",  # test al, 1           data ready?
    (b"\x74", "read_ready"),  # jz   read_ready
    b"\x66\xba\xf8\x03",  # mov  dx, 0x3f8
    b"\xec",  # in   al, dx
    b"\x3c" + POWER_OFF,  # cmp  al, 'q'
    (b"\x74", "power_off"),  # jz   power_off
    b"\x3c" + RESET,  # cmp  al, 'r'
    (b"\x74", "reset"),  # jz   reset
    b"\x3c" + FILL,  # cmp  al, 'm'
    (b"\x74", "fill"),  # jz   fill
    b"\xee",  # out  dx, al
    (b"\xeb", "read"),  # jmp  read
    "power_off",
    b"\xb0\x34",  # mov  al, 0x34        S5 and sleep enable
    b"\x66\xba\x00\x06",  # mov  dx, 0x600
    b"\xee",  # out  dx, al
    (b"\xeb", "stop"),  # jmp  stop
    "reset",
    b"\xb0\xfe",  # mov  al, 0xfe        pulse the reset line
    b"\xe6\x64",  # out  0x64, al
    "stop",
    b"\xf4",  # hlt
    (b"\xeb", "stop"),  # jmp  stop
    "fill",
    b"\xbf\x00\x00\x20\x00",  # mov  edi, 0x200000
    "fill_page",
    b"\x89\x3f",  # mov  [edi], edi
    b"\x81\xc7\x00\x10\x00\x00",  # add  edi, 0x1000
    (b"\xeb", "fill_page"),  # jmp  fill_page
]


IDLE: Code = [*CODE[: CODE.index("read") + 1], b"\xf4", (b"\xeb", "read")]  # hlt; jmp read


# After the banner: ebx counts, and each number is written as eight letters, from a for 0 to p for 15.
COUNTING: Code = [
    *CODE[: CODE.index("read")],
    "read",
    b"\x31\xdb",  # xor  ebx, ebx
    "number",
    b"\xb9\x08\x00\x00\x00",  # mov  ecx, 8
    "letter",
    b"\xc1\xc3\x04",  # rol  ebx, 4
    b"\x66\xba\xfd\x03",  # mov  dx, 0x3fd
    "letter_ready",
    b"\xec",  # in   al, dx
    b"\xa8\x20",  # test al, 0x20
    (b"\x74", "letter_ready"),  # jz   letter_ready
    b"\x88\xd8",  # mov  al, bl
    b"\x24\x0f",  # and  al, 0x0f
    b"\x04\x61",  # add  al, 'a'
    b"\x66\xba\xf8\x03",  # mov  dx, 0x3f8
    b"\xee",  # out  dx, al
    (b"\xe2", "letter"),  # loop letter
    b"\x43",  # inc  ebx
    (b"\xeb", "number"),  # jmp  number
]


def numbers(text: str) -> list[int]:
    """Return the numbers that a counting guest has written; the last may have been cut short."""
    letters = text.translate(str.maketrans("abcdefghijklmnop", "0123456789abcdef"))
    return [int(letters[at : at + 8], 16) for at in range(0, len(letters) - 7, 8)]


def _assemble(source: Code) -> bytes:
    labels: dict[str, int] = {}
    position = 0
    for part in source:
        if isinstance(part, str):
            labels[part] = position
        else:
            position += len(part)  # a jump is two bytes too: its opcode and the distance
    code = b""
    for part in source:
        if isinstance(part, bytes):
            code += part
        elif isinstance(part, tuple):
            code += part[0] + struct.pack("<b", labels[part[1]] - (len(code) + 2))
    return code.ljust(0x80, b"\x90") + BANNER + b"\0"


def image(source: Code) -> bytes:
    """Return the ELF file: a program header each for the code and for the note that names the entry point."""
    code = _assemble(source)
    note = struct.pack("<III4sQ", 4, 8, XEN_ELFNOTE_PHYS32_ENTRY, b"Xen\0", LOAD_ADDRESS)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64-bit, little-endian: the only ELF that Cloud Hypervisor reads
    executable, x86_64, load, notes = 2, 62, 1, 4
    header = ident + struct.pack("<HHIQQQIHHHHHH", executable, x86_64, 1, LOAD_ADDRESS, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    size = len(code)
    segments = struct.pack(
        "<IIQQQQQQ", load, 7, FILE_OFFSET, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 0x1000
    ) + struct.pack("<IIQQQQQQ", notes, 4, NOTE_OFFSET, 0, 0, len(note), len(note), 4)
    return ((header + segments).ljust(NOTE_OFFSET, b"\0") + note).ljust(FILE_OFFSET, b"\0") + code


def write(path: Path, *, idle: bool = False, counting: bool = False) -> Path:
    """Write the guest to ``path`` and return it."""
    path.write_bytes(image(IDLE if idle else COUNTING if counting else CODE))
    return path
