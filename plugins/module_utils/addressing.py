# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a pool of addresses to one VM's subnet, addresses, MAC and TAP name. Pure."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import count
from typing import Any, Union

from .errors import MicrovmError

Address = Union[IPv4Address, IPv6Address]
Network = Union[IPv4Network, IPv6Network]

DEFAULT_CIDR = "10.213.0.0/16"
DEFAULT_PREFIX = {4: 30, 6: 126}
DEFAULT_TAP_PREFIX = "chtap"
# linux/vm_sockets.h: 0 to 2 are the hypervisor, local communication and the host; 0xFFFFFFFF is any.
FIRST_CID, LAST_CID = 3, 0xFFFFFFFE


@dataclass(frozen=True, slots=True)
class Pool:
    """Addresses to lease from, cut into subnets of ``prefix`` bits; ``exclude`` is never leased."""

    network: Network
    prefix: int
    exclude: tuple[Network, ...] = ()

    @property
    def size(self) -> int:
        """The number of subnets."""
        return 1 << (self.prefix - self.network.prefixlen)


def parse_pool(options: Mapping[str, Any], *, version: int, option: str) -> Pool:
    """Read ``{cidr, prefix, exclude}``; what is missing or None is the default of that IP ``version``.

    Raises MicrovmError, naming ``option``, for a CIDR with host bits or of the other version, and for a prefix that
    leaves no room for two hosts or does not fit the pool.
    """
    cidr = options.get("cidr") or (DEFAULT_CIDR if version == 4 else None)
    if cidr is None:
        raise MicrovmError("is missing; give a network such as fd12:3456:789a::/48", option=f"{option}.cidr")
    network = parse_network(cidr, version=version, option=f"{option}.cidr")
    prefix = options.get("prefix")
    prefix = DEFAULT_PREFIX[version] if prefix is None else int(prefix)
    longest = network.max_prefixlen - 1
    if not network.prefixlen <= prefix <= longest:
        raise MicrovmError(
            f"{prefix} is not the length of a prefix in {network} with room for the host and a guest; "
            f"use {network.prefixlen} to {longest}",
            option=f"{option}.prefix",
        )
    exclude = tuple(
        parse_network(text, version=version, option=f"{option}.exclude") for text in options.get("exclude") or ()
    )
    return Pool(network, prefix, exclude)


def parse_network(text: object, *, option: str, version: int | None = None) -> Network:
    """Return a network; raise MicrovmError, naming ``option``, where it is none, or not of the ``version`` that is given."""
    try:
        network = ip_network(str(text))
    except ValueError as error:
        raise MicrovmError(f"{text!r} is not a network: {error}", option=option) from error
    if version not in (None, network.version):
        raise MicrovmError(f"{text!r} is not an IPv{version} network", option=option)
    return network


def _shift(pool: Pool) -> int:
    return pool.network.max_prefixlen - pool.prefix


def subnet_of(pool: Pool, address: Address) -> Network | None:
    """Return the pool's subnet that holds ``address``, or None where the pool does not."""
    if address.version != pool.network.version or address not in pool.network:
        return None
    return ip_network((int(address) >> _shift(pool) << _shift(pool), pool.prefix))


def free_subnets(pool: Pool, blocked: Iterable[Network]) -> Iterator[Network]:
    """Yield the pool's subnets that overlap nothing in ``blocked`` nor what the pool excludes, lowest first.

    What is blocked is sorted once and passed over as intervals: the cost of a thousand subnets is that of the sorting,
    whether a blocked network holds one subnet or a million.
    """
    shift, base = _shift(pool), int(pool.network.network_address)
    intervals = sorted(
        (max(0, (int(network.network_address) - base) >> shift), (int(network.broadcast_address) - base) >> shift)
        for network in (*blocked, *pool.exclude)
        if network.version == pool.network.version and network.overlaps(pool.network)
    )
    index = 0
    for first, last in (*intervals, (pool.size, pool.size)):
        while index < min(first, pool.size):
            yield ip_network((base + (index << shift), pool.prefix))
            index += 1
        index = max(index, last + 1)


def host_address(subnet: Network) -> Address:
    """Return the host's side: the first usable address. A subnet of two has no other (RFC 3021, RFC 6164)."""
    return subnet[0] if subnet.num_addresses == 2 else subnet[1]


def guest_address(subnet: Network, wanted: Address | None = None) -> Address | None:
    """Return the guest's side: ``wanted`` where it is a usable address beside the host's, else None.

    Without ``wanted``, it is the address after the host's.
    """
    if wanted is None:
        return host_address(subnet) + 1
    taken = {host_address(subnet)}
    if subnet.num_addresses > 2:
        taken.add(subnet.network_address)
        if subnet.version == 4:
            taken.add(subnet.broadcast_address)
    return wanted if wanted in subnet and wanted not in taken else None


def derived_mac(address: IPv4Address) -> str:
    """Return a MAC that is as unique as the address: locally administered (IEEE 802, bit 1 of the first byte)."""
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x63, *address.packed))


_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


def parse_mac(text: str) -> str:
    """Return a MAC in lower case; raise MicrovmError unless it is a unicast address in the form aa:bb:cc:dd:ee:ff."""
    mac = text.lower()
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise MicrovmError(f"{text!r} is not a unicast MAC such as 02:63:0a:d5:00:02", option="mac")
    return mac


def parse_address(text: str, version: int, *, option: str) -> Address:
    """Return an address; raise MicrovmError, naming ``option``, where it is none of this IP ``version``."""
    try:
        address = ip_address(text)
    except ValueError:
        address = None
    if address is None or address.version != version:
        example = "10.213.0.2" if version == 4 else "fd12:3456:789a::2"
        raise MicrovmError(f"{text!r} is not an IPv{version} address such as {example}", option=option)
    return address


# IFNAMSIZ of linux/if.h leaves 15 characters.
_TAP_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,9}")


def free_taps(prefix: str, taken: Container[str]) -> Iterator[str]:
    """Yield the TAP names that are not taken, lowest number first.

    Raises MicrovmError for a prefix that could not be followed by a number of five digits within the 15 characters
    of an interface's name.
    """
    if not _TAP_PREFIX.fullmatch(prefix):
        raise MicrovmError(
            f"{prefix!r} does not begin an interface's name: use 1 to 10 letters, digits, '-' or '_', a letter first",
            option="tap_prefix",
        )
    return (name for number in count() if (name := f"{prefix}{number}") not in taken)


def free_cids(taken: Container[int]) -> Iterator[int]:
    """Yield the vsock context ids that are not taken, lowest first."""
    return (cid for cid in range(FIRST_CID, LAST_CID + 1) if cid not in taken)
