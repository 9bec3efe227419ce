# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""TAPs: made beforehand, so that the VMM needs no capability to open its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from .errors import MicrovmError
from .runner import Runner

_SYS = Path("/sys/class/net")
_PROC = Path("/proc/sys/net")
# IFNAMSIZ of linux/if.h leaves 15 characters.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
# linux/if_tun.h
_IFF_TAP, _IFF_MULTI_QUEUE, _IFF_VNET_HDR = 0x0002, 0x0100, 0x4000


@dataclass(frozen=True, slots=True)
class Tap:
    """A TAP by its name, the host's addresses on it with their prefixes, and the user id that may open it.

    ``multi_queue``: a NIC with more than two queues opens it once for each pair. ``mtu`` and ``mac`` are None where they do
    not matter; a VMM without capabilities cannot set them, and tells its guest the MTU that it finds.
    """

    name: str
    addresses: tuple[str, ...] = ()
    owner: int | None = None
    multi_queue: bool = False
    mtu: int | None = None
    mac: str | None = None


def with_macs(taps: Iterable[Tap], config: Mapping[str, Any]) -> tuple[Tap, ...]:
    """Return TAPs with the MACs that a VMM's configuration has for the host's side (NetConfig, ``host_mac``).

    A VMM that takes a guest over sets them, which one without capabilities can do only where they are set already.
    """
    macs = {net.get("tap"): net.get("host_mac") for net in config.get("net") or ()}
    return tuple(replace(tap, mac=macs.get(tap.name)) for tap in taps)


def check_name(name: str) -> str:
    """Return a TAP's name; raise MicrovmError for one that no interface can have."""
    if not _NAME.fullmatch(name):
        raise MicrovmError(
            f"{name!r} is not the name of a TAP: use 1 to 15 letters, digits, '-', '_' or '.'", option="nets.tap"
        )
    return name


def exists(name: str) -> bool:
    """Return whether there is an interface of this name."""
    return (_SYS / name).exists()


def has_carrier(name: str) -> bool:
    """Return whether a VMM has the TAP open."""
    try:
        return (_SYS / name / "carrier").read_text().strip() == "1"
    except OSError:  # it is missing, or down
        return False


def missing(runner: Runner, tap: Tap) -> list[str]:
    """Return what a run of ``ensure`` would do, in words; nothing where the TAP is as it should be.

    Raises MicrovmError for an interface of this name that is no TAP with a header for each packet (vnet_hdr).
    """
    if not exists(tap.name):
        return [f"made the TAP {tap.name}"]
    flags = _flags(tap.name)
    if not flags & _IFF_TAP or not flags & _IFF_VNET_HDR:
        raise MicrovmError(
            f"the interface '{tap.name}' is there and is no TAP with vnet_hdr; remove it, or choose another name",
            option="nets.tap",
        )
    if _queues_differ(tap) and not has_carrier(tap.name):
        return [f"made the TAP {tap.name} anew"]
    shown = _shown(runner, tap.name)
    steps = [f"gave {tap.name} the address {address}" for address in _missing_addresses(shown, tap)]
    steps += [f"gave {tap.name} the {what} {value}" for what, value in _missing_settings(shown, tap).items()]
    if "UP" not in shown["flags"]:
        steps.append(f"set {tap.name} up")
    return steps


def _queues_differ(tap: Tap) -> bool:
    """Return whether the TAP is for one queue pair where it should be for several, or the other way round."""
    return bool(_flags(tap.name) & _IFF_MULTI_QUEUE) != tap.multi_queue


def _flags(name: str) -> int:
    """Return the flags of a TUN or TAP, 0 for any other interface and for none."""
    try:
        return int((_SYS / name / "tun_flags").read_text(), 16)
    except OSError:
        return 0


def _shown(runner: Runner, name: str) -> dict[str, Any]:
    """Return an interface with its flags and addresses, as ip(8) shows it."""
    return dict(json.loads(runner.run(["ip", "-json", "address", "show", "dev", name]).stdout)[0])


def _missing_addresses(shown: Mapping[str, Any], tap: Tap) -> list[str]:
    there = {
        ip_interface(f"{address['local']}/{address['prefixlen']}")
        for address in shown.get("addr_info", ())
        if "local" in address
    }
    return [address for address in tap.addresses if ip_interface(address) not in there]


def _missing_settings(shown: Mapping[str, Any], tap: Tap) -> dict[str, str]:
    """Return what ip-link(8) is to set, by its own names."""
    wanted = {"mtu": tap.mtu, "address": tap.mac}
    return {what: str(value) for what, value in wanted.items() if value is not None and shown.get(what) != value}


def _owner(name: str) -> int:
    """Return the user id that may open a TAP, -1 for root alone."""
    try:
        return int((_SYS / name / "owner").read_text())
    except OSError:
        return -1


def ensure(runner: Runner, tap: Tap) -> bool:
    """Make the TAP, or what it lacks; return whether it was made. Raises CommandFailed; a new one is gone then.

    One that no VMM has open is made anew where its owner, or the number of its queues, is another.
    """
    made = not exists(tap.name)
    other = tap.owner not in (None, _owner(tap.name)) or _queues_differ(tap)
    if not made and other and not has_carrier(tap.name):
        remove(runner, tap.name)
        made = True
    if made:
        argv = ["ip", "tuntap", "add", "dev", tap.name, "mode", "tap", "vnet_hdr"]
        argv += ["multi_queue"] if tap.multi_queue else []
        runner.run(argv if tap.owner is None else [*argv, "user", str(tap.owner)])
    try:
        shown = _shown(runner, tap.name)
        for what, value in _missing_settings(shown, tap).items():
            runner.run(["ip", "link", "set", "dev", tap.name, what, value])
        for address in _missing_addresses(shown, tap):
            # A duplicate of an address on a link with one other host, which is ours, need not be looked for.
            nodad = ["nodad"] if ip_interface(address).version == 6 else []
            runner.run(["ip", "address", "add", address, "dev", tap.name, *nodad])
        _forward(tap.name)
        runner.run(["ip", "link", "set", "dev", tap.name, "up"])
    except BaseException:
        if made:
            remove(runner, tap.name)
        raise
    return made


def _forward(name: str) -> None:
    """Let the kernel forward what comes in here, and nothing that comes in elsewhere (ip-sysctl.rst).

    Linux before 6.17 has no such switch for IPv6; there the host role's setting for all interfaces counts.
    """
    (_PROC / "ipv4/conf" / name / "forwarding").write_text("1\n")
    with suppress(FileNotFoundError):
        (_PROC / "ipv6/conf" / name / "force_forwarding").write_text("1\n")


def remove(runner: Runner, name: str) -> bool:
    """Remove exactly this TAP; return whether it was there. An interface of another kind stays. Raises CommandFailed."""
    if not _flags(name) & _IFF_TAP:
        return False
    runner.run(["ip", "link", "delete", "dev", name])
    return True
