# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which leases a call adds and removes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from ipaddress import ip_address, ip_network
from typing import Any

from . import addressing
from .addressing import Address, Network, Pool
from .errors import MicrovmError
from .host_network import HostNetwork
from .names import check_vm_name


@dataclass(frozen=True, slots=True)
class Lease:
    """What a VM has on the network, as text; the IPv6 part is None where no pool of it was asked for."""

    name: str
    address: str
    host_address: str
    prefix: int
    subnet: str
    mac: str
    tap: str
    cid: int
    address6: str | None = None
    host_address6: str | None = None
    prefix6: int | None = None
    subnet6: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return what the next step needs: all but the name."""
        facts = asdict(self)
        del facts["name"]
        return facts


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for one VM; an option that was not given is None and matches any lease."""

    name: str
    present: bool
    pool: Pool
    pool6: Pool | None
    pool_given: bool
    address: Address | None
    mac: str | None
    tap_prefix: str
    # What the VM has on another host, and brings with it.
    lease: Lease | None = None


@dataclass(slots=True)
class Plan:
    """What a call does: each VM's outcome, and the leases that make the difference."""

    outcomes: dict[str, Lease | MicrovmError | None] = field(default_factory=dict)
    added: list[Lease] = field(default_factory=list)
    removed: list[Lease] = field(default_factory=list)


def parse_request(options: Mapping[str, Any]) -> Request:
    """Read one VM's options; raise MicrovmError for what can be no lease."""
    name = check_vm_name(options["name"])
    pool6 = options.get("pool6")
    return Request(
        name=name,
        present=options.get("state") != "absent",
        pool=addressing.parse_pool(options.get("pool") or {}, version=4, option="pool"),
        pool6=None if pool6 is None else addressing.parse_pool(pool6, version=6, option="pool6"),
        pool_given=options.get("pool") is not None,
        address=None
        if options.get("address") is None
        else addressing.parse_address(options["address"], 4, option="address"),
        mac=None if options.get("mac") is None else addressing.parse_mac(options["mac"]),
        tap_prefix=options.get("tap_prefix") or addressing.DEFAULT_TAP_PREFIX,
        lease=None if options.get("lease") is None else _brought(name, options["lease"]),
    )


def _brought(name: str, facts: Mapping[str, Any]) -> Lease:
    given: dict[str, Any] = {column.name: facts.get(column.name) for column in fields(Lease) if column.name != "name"}
    missing = [
        key for key in ("address", "host_address", "prefix", "subnet", "mac", "tap", "cid") if given[key] is None
    ]
    if missing:
        raise MicrovmError(f"is no lease such as this module returns: it has no {', '.join(missing)}", option="lease")
    addressing.parse_mac(given["mac"])
    try:
        for suffix in ("", "6") if given["subnet6"] is not None else ("",):
            network = ip_network(given[f"subnet{suffix}"])
            for key in (f"address{suffix}", f"host_address{suffix}"):
                if ip_address(given[key]) not in network:
                    raise ValueError(f"{given[key]} does not lie in {network}")
    except ValueError as error:
        raise MicrovmError(f"is no lease such as this module returns: {error}", option="lease") from error
    return Lease(name=name, **given)


def mismatch(lease: Lease, request: Request) -> MicrovmError | None:
    """Return the error where what is asked for now is not what was leased, or None."""
    subnet = ip_network(lease.subnet)
    wrong: tuple[str, str, str] | None = None
    if request.lease is not None:
        wrong = None if lease == request.lease else ("lease", lease.subnet, request.lease.subnet)
    elif request.pool_given and addressing.subnet_of(request.pool, subnet[0]) != subnet:
        wrong = ("pool", lease.subnet, f"a /{request.pool.prefix} of {request.pool.network}")
    elif request.address is not None and str(request.address) != lease.address:
        wrong = ("address", lease.address, str(request.address))
    elif request.mac is not None and request.mac != lease.mac:
        wrong = ("mac", lease.mac, request.mac)
    elif request.pool6 is not None and (
        lease.subnet6 is None or addressing.subnet_of(request.pool6, ip_network(lease.subnet6)[0]) is None
    ):
        wrong = ("pool6", lease.subnet6 or "no IPv6", f"a /{request.pool6.prefix} of {request.pool6.network}")
    if wrong is None:
        return None
    option, leased, asked = wrong
    return MicrovmError(
        f"has leased {leased}, and {asked} is asked for; a VM keeps its lease until it is released with "
        "state=absent, so release it first, or ask for what it has",
        option=option,
        vm=lease.name,
    )


class _Allocator:
    """Hands out what no lease has, each kind in order, so that a call for many VMs searches once."""

    def __init__(self, leases: Iterable[Lease], host: HostNetwork) -> None:
        self.leases = list(leases)
        self.host = host.networks
        self.searches: dict[int, tuple[Pool | None, Iterator[Network]]] = {}
        self.taps: dict[str, Iterator[str]] = {}
        self.macs = {lease.mac: lease.name for lease in self.leases}
        # Another's interface is none that a VM may have as its TAP.
        self.taken_taps = {*host.interfaces, *(lease.tap for lease in self.leases)}
        self.taken_cids = {lease.cid for lease in self.leases}
        self.cids = addressing.free_cids(self.taken_cids)
        self.networks: dict[Network, str] = {}
        for lease in self.leases:
            self._remember(lease)

    def _remember(self, lease: Lease) -> None:
        self.networks[ip_network(lease.subnet)] = lease.name
        if lease.subnet6 is not None:
            self.networks[ip_network(lease.subnet6)] = lease.name

    def subnet(self, pool: Pool, option: str) -> Network:
        # A search goes on where it stood, unless another pool, which may overlap this one, has given since.
        searched, free = self.searches.get(pool.network.version, (None, iter(())))
        if searched != pool:
            free = addressing.free_subnets(pool, [*self.networks, *self.host])
            self.searches[pool.network.version] = (pool, free)
        subnet = next(free, None)
        if subnet is None:
            leased = sum(network.overlaps(pool.network) for network in self.networks)
            raise MicrovmError(
                f"the pool {pool.network} has no free /{pool.prefix} left: of {pool.size}, {leased} leases lie in it "
                "and the rest is excluded or in use on the host; give a larger pool, or release VMs that are gone",
                option=option,
            )
        return subnet

    def subnet_with(self, pool: Pool, address: Address) -> Network:
        subnet = addressing.subnet_of(pool, address)
        if subnet is None or addressing.guest_address(subnet, address) is None:
            raise MicrovmError(
                f"{address} can be no guest's address in the pool {pool.network} with subnets of /{pool.prefix}, in "
                "which the first usable address is the host's",
                option="address",
            )
        for network, name in self.networks.items():
            if network.overlaps(subnet):
                raise MicrovmError(f"{address} lies in {network}, which VM '{name}' has leased", option="address")
        for network in (*self.host, *pool.exclude):
            if network.version == 4 and network.overlaps(subnet):
                raise MicrovmError(
                    f"{address} lies in {subnet}, which overlaps {network}: excluded, or in use on the host",
                    option="address",
                )
        return subnet

    def _tap(self, request: Request) -> str:
        if request.address is not None:
            name = f"{request.tap_prefix}{int(request.address) & 0xFFFF}"
            if name not in self.taken_taps:
                return name
        return next(self.taps[request.tap_prefix])

    def _cid(self, request: Request) -> int:
        # An address that was asked for may be meant to be the VM's on all hosts, and what is derived from it is then.
        if request.address is not None and int(request.address) not in self.taken_cids:
            return int(request.address)
        return next(self.cids)

    def adopt(self, lease: Lease) -> Lease:
        """Take a lease that was given elsewhere. Raises MicrovmError where something of it is taken here."""
        subnets = [ip_network(subnet) for subnet in (lease.subnet, lease.subnet6) if subnet is not None]
        owners = [(network, f"leased by VM '{name}'") for network, name in self.networks.items()]
        for network, owner in (*owners, *((network, "in use on the host") for network in self.host)):
            for subnet in subnets:
                if network.version == subnet.version and network.overlaps(subnet):
                    raise MicrovmError(f"the subnet {subnet} overlaps {network}, {owner}", option="lease")
        if lease.mac in self.macs:
            raise MicrovmError(f"{lease.mac} is the MAC of VM '{self.macs[lease.mac]}'", option="lease")
        for what, value, taken in (("TAP", lease.tap, self.taken_taps), ("context id", lease.cid, self.taken_cids)):
            if value in taken:
                raise MicrovmError(f"the {what} {value} is taken on this host", option="lease")
        self.searches.clear()
        self.taps.clear()
        self.taken_taps.add(lease.tap)
        self.taken_cids.add(lease.cid)
        self.cids = addressing.free_cids(self.taken_cids)
        self.macs[lease.mac] = lease.name
        self._remember(lease)
        return lease

    def lease(self, request: Request) -> Lease:
        if request.address is None:
            subnet = self.subnet(request.pool, "pool")
        else:
            subnet = self.subnet_with(request.pool, request.address)
            self.searches.clear()
        subnet6 = None if request.pool6 is None else self.subnet(request.pool6, "pool6")
        address = addressing.guest_address(subnet, request.address)
        mac = request.mac or addressing.derived_mac(ip_address(str(address)))  # type: ignore[arg-type]
        if mac in self.macs:
            raise MicrovmError(f"{mac} is the MAC of VM '{self.macs[mac]}'", option="mac")
        if request.tap_prefix not in self.taps:
            self.taps[request.tap_prefix] = addressing.free_taps(request.tap_prefix, self.taken_taps)
        lease = Lease(
            name=request.name,
            address=str(address),
            host_address=str(addressing.host_address(subnet)),
            prefix=subnet.prefixlen,
            subnet=str(subnet),
            mac=mac,
            tap=self._tap(request),
            cid=self._cid(request),
            address6=None if subnet6 is None else str(addressing.guest_address(subnet6)),
            host_address6=None if subnet6 is None else str(addressing.host_address(subnet6)),
            prefix6=None if subnet6 is None else subnet6.prefixlen,
            subnet6=None if subnet6 is None else str(subnet6),
        )
        self.macs[mac] = request.name
        self.taken_taps.add(lease.tap)
        self.taken_cids.add(lease.cid)
        self._remember(lease)
        return lease


def plan(leases: Mapping[str, Lease], requests: Iterable[Request], host: HostNetwork) -> Plan:
    """Return what to do for ``requests`` where ``leases`` are there and ``host`` is what is taken on the host.

    What is released is free for the same call. A request that cannot be met is an error in its VM's outcome.
    """
    requests = list(requests)
    result = Plan()
    released = {request.name for request in requests if not request.present}
    allocator = _Allocator((lease for lease in leases.values() if lease.name not in released), host)
    for request in requests:
        lease = leases.get(request.name)
        if not request.present:
            result.outcomes[request.name] = None
            if lease is not None:
                result.removed.append(lease)
        elif lease is not None:
            result.outcomes[request.name] = mismatch(lease, request) or lease
        else:
            try:
                lease = allocator.adopt(request.lease) if request.lease else allocator.lease(request)
            except MicrovmError as error:
                result.outcomes[request.name] = error.for_vm(request.name)
            else:
                result.outcomes[request.name] = lease
                result.added.append(lease)
    return result
