# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The firewall, with real packets between network namespaces: two VMs, their host, and a host outside."""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import firewall
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import Completed, HostRunner

HOST, ONE, TEN, OUT = "fwtest-host", "fwtest-one", "fwtest-ten", "fwtest-out"
# A guest's answer takes microseconds here; what is dropped is waited for this long, in seconds.
PATIENCE = 0.25
ADDRESSES = {ONE: "10.213.0.2", TEN: "10.213.0.6", OUT: "198.51.100.2", HOST: "198.51.100.1"}
ADDRESSES6 = {ONE: "fd00:0:0:1::2", TEN: "fd00:0:0:2::2", OUT: "2001:db8::2", HOST: "2001:db8::1"}
PRIVATE = "10.99.0.1"
MACS = {ONE: "02:63:0a:d5:00:02", TEN: "02:63:0a:d5:00:06"}
# One name begins the other: removing the first must leave the second.
TAPS = {ONE: "chtap1", TEN: "chtap10"}
VMS: dict[str, dict[str, Any]] = {
    name: {"name": name.removeprefix("fwtest-"), "tap": TAPS[name], "mac": MACS[name]}
    | {"address": ADDRESSES[name], "address6": ADDRESSES6[name]}
    for name in (ONE, TEN)
}


class InHost:
    """Runs commands in the host's namespace."""

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        return HostRunner().run(["ip", "netns", "exec", HOST, *argv], **options)


def ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True)


def inside(namespace: str, work: Callable[[], bytes]) -> bytes:
    """Call ``work`` in a namespace, in a child, and return what it returns."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with open(f"/run/netns/{namespace}") as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) != 0:
                    os._exit(2)
            os.write(sender, b"=" + work())
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    assert answer[:1] == b"=", "the work in the namespace failed"
    return answer[1:]


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Listener:
    """Listens in a namespace on a port, and tells from where it was reached."""

    def __init__(self, namespace: str, port: int, kind: socket.SocketKind, version: socket.AddressFamily) -> None:
        self.receiver, sender = os.pipe()
        ready, tell = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            with open(f"/run/netns/{namespace}") as file:
                ctypes.CDLL(None).setns(file.fileno(), 0)
            with socket.socket(version, kind) as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind(("", port))
                if kind == socket.SOCK_STREAM:
                    server.listen()
                os.write(tell, b"x")
                if kind == socket.SOCK_STREAM:
                    connection, peer = server.accept()
                    connection.sendall(b"hello")
                else:
                    _data, peer = server.recvfrom(100)
                    server.sendto(b"hello", peer)
                os.write(sender, str(peer[0]).encode())
            os._exit(0)
        os.close(sender)
        os.close(tell)
        os.read(ready, 1)
        os.close(ready)

    def peer(self) -> str | None:
        """The address that reached it, None if none has."""
        readable = select.select([self.receiver], [], [], 0.05)[0]
        return os.read(self.receiver, 100).decode() if readable else None

    def close(self) -> None:
        os.kill(self.child, 9)
        os.waitpid(self.child, 0)
        os.close(self.receiver)


def reach(
    source: str,
    target: str,
    address: str,
    port: int,
    *,
    at: int | None = None,
    udp: bool = False,
    bound: str | None = None,
) -> tuple[bool, str | None]:
    """Return whether a client in ``source`` gets an answer from ``target``, and the address that the server saw."""
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    listener = Listener(target, at or port, kind, family(ADDRESSES6[ONE]) if ":" in address else socket.AF_INET)

    def client() -> bytes:
        with socket.socket(family(address), kind) as connection:
            connection.settimeout(PATIENCE)
            try:
                if bound is not None:
                    connection.bind((bound, 0))
                connection.connect((address, port))
                if udp:
                    connection.send(b"?")
                return connection.recv(10)
            except OSError:
                return b""

    try:
        return inside(source, client) == b"hello", listener.peer()
    finally:
        listener.close()


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    names = (HOST, ONE, TEN, OUT)
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        subprocess.run(
            ["ip", "netns", "exec", name, "sh", "-c", "echo 0 | tee /proc/sys/net/ipv6/conf/*/accept_dad"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    for name, link in ((ONE, "chtap1"), (TEN, "chtap10"), (OUT, "up0")):
        ip("-n", HOST, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        if name in MACS:
            ip("-n", name, "link", "set", "eth0", "address", MACS[name])
        for namespace, device in ((HOST, link), (name, "eth0")):
            ip("-n", namespace, "link", "set", device, "up")
    for name, host4, host6 in ((ONE, "10.213.0.1", "fd00:0:0:1::1"), (TEN, "10.213.0.5", "fd00:0:0:2::1")):
        for namespace, device, addresses in (
            (HOST, TAPS[name], (f"{host4}/30", f"{host6}/126")),
            (name, "eth0", (f"{ADDRESSES[name]}/30", f"{ADDRESSES6[name]}/126")),
        ):
            for address in addresses:
                ip("-n", namespace, "address", "add", address, "dev", device, *(["nodad"] if ":" in address else []))
        ip("-n", name, "route", "add", "default", "via", host4)
        ip("-n", name, "-6", "route", "add", "default", "via", host6)
    for namespace, device, here in ((HOST, "up0", HOST), (OUT, "eth0", OUT)):
        ip("-n", namespace, "address", "add", f"{ADDRESSES[here]}/24", "dev", device)
        ip("-n", namespace, "address", "add", f"{ADDRESSES6[here]}/64", "dev", device, "nodad")
    # The host outside stands for all others: one of a private network too, and it has a way to the VMs.
    ip("-n", OUT, "address", "add", f"{PRIVATE}/32", "dev", "lo")
    ip("-n", OUT, "route", "add", "10.213.0.0/16", "via", ADDRESSES[HOST])
    ip("-n", OUT, "-6", "route", "add", "fd00::/16", "via", ADDRESSES6[HOST])
    ip("-n", HOST, "route", "add", "default", "via", ADDRESSES[OUT])
    ip("-n", HOST, "-6", "route", "add", "default", "via", ADDRESSES6[OUT])
    settings = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
    subprocess.run(["ip", "netns", "exec", HOST, "sh", "-c", settings], check=True)
    yield
    for name in names:
        ip("netns", "delete", name)


def ensure(state_dir: Path, *items: Mapping[str, Any], check_mode: bool = False) -> firewall.Report:
    return firewall.ensure(items, state_dir=state_dir, runner=InHost(), check_mode=check_mode)


@pytest.fixture
def state_dir(network: None, tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    ensure(tmp_path, {"name": "one", "state": "absent"}, {"name": "ten", "state": "absent"})


def policy(state_dir: Path, **options: Any) -> None:
    """Give VM one these options, and VM ten none."""
    report = ensure(state_dir, {**VMS[ONE], **options}, VMS[TEN])
    assert not [outcome for outcome in report.outcomes.values() if isinstance(outcome, MicrovmError)]


@pytest.mark.parametrize("addresses", [ADDRESSES, ADDRESSES6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
@pytest.mark.parametrize(
    ("source", "target", "passes"),
    [
        (ONE, OUT, True),
        (TEN, OUT, True),
        (HOST, ONE, True),
        (ONE, TEN, False),
        (TEN, ONE, False),
        (ONE, HOST, False),
        (OUT, ONE, False),
    ],
)
def test_who_reaches_whom(
    state_dir: Path, source: str, target: str, passes: bool, udp: bool, addresses: Mapping[str, str]
) -> None:
    address = addresses[target]
    if target == HOST:  # by the address from which the host answers
        address = "fd00:0:0:1::1" if ":" in address else "10.213.0.1"
    # Without the rules all of it passes, so that it is they who drop.
    assert reach(source, target, address, 7000, udp=udp)[0]
    policy(state_dir)
    reached, seen = reach(source, target, address, 7000, udp=udp)
    assert reached is passes
    if target == OUT:
        assert seen == addresses[HOST], "a VM goes out with the host's address"


@pytest.mark.parametrize(
    ("egress", "address", "port", "passes"),
    [
        ({}, PRIVATE, 7000, False),
        ({"private": True}, PRIVATE, 7000, True),
        ({"policy": "none"}, ADDRESSES[OUT], 7000, False),
        ({"policy": "none"}, ADDRESSES6[OUT], 7000, False),
        ({"allow": [{"cidr": "10.99.0.0/24"}]}, PRIVATE, 7000, True),
        ({"allow": [{"cidr": "10.98.0.0/24"}]}, PRIVATE, 7000, False),
        ({"policy": "none", "allow": [{"cidr": "198.51.100.0/24"}]}, ADDRESSES[OUT], 7000, True),
        ({"policy": "none", "allow": [{"cidr": "2001:db8::/64"}]}, ADDRESSES6[OUT], 7000, True),
        ({"allow": [{"cidr": "10.99.0.0/24", "proto": "tcp", "ports": "6999-7001"}]}, PRIVATE, 7001, True),
        ({"allow": [{"cidr": "10.99.0.0/24", "proto": "tcp", "ports": "6999-7001"}]}, PRIVATE, 7002, False),
        ({"allow": [{"cidr": "10.99.0.0/24", "proto": "udp", "ports": "7000"}]}, PRIVATE, 7000, False),
    ],
)
def test_egress(state_dir: Path, egress: dict[str, Any], address: str, port: int, passes: bool) -> None:
    policy(state_dir, egress=egress)
    assert reach(ONE, OUT, address, port)[0] is passes


@pytest.mark.parametrize("source", [OUT, HOST])
@pytest.mark.parametrize("addresses", [ADDRESSES, ADDRESSES6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_forwards(state_dir: Path, source: str, addresses: Mapping[str, str], udp: bool) -> None:
    proto = "udp" if udp else "tcp"
    policy(state_dir, forwards=[{"port": "8000-8001", "guest_port": 90, "proto": proto}])
    host = addresses[HOST]
    assert reach(source, ONE, host, 8000, at=90, udp=udp)[0]
    assert reach(source, ONE, host, 8001, at=91, udp=udp)[0]
    assert not reach(source, ONE, host, 8002, at=92, udp=udp)[0]
    assert not reach(source, ONE, host, 8000, at=90, udp=not udp)[0]


@pytest.mark.parametrize(("sources", "passes"), [(["198.51.100.0/25"], True), (["198.51.100.128/25"], False)])
def test_forwards_for_some_clients(state_dir: Path, sources: list[str], passes: bool) -> None:
    policy(state_dir, forwards=[{"port": 8000, "sources": sources}])
    assert reach(OUT, ONE, ADDRESSES[HOST], 8000)[0] is passes


@pytest.mark.parametrize(("host_address", "passes"), [(ADDRESSES[HOST], True), ("198.51.100.9", False)])
def test_forwards_of_one_address(state_dir: Path, host_address: str, passes: bool) -> None:
    policy(state_dir, forwards=[{"port": 8000, "host_address": host_address}])
    assert reach(OUT, ONE, ADDRESSES[HOST], 8000)[0] is passes


def test_a_forward_does_not_open_the_vm_itself(state_dir: Path) -> None:
    policy(state_dir, forwards=[{"port": 8000}])
    assert not reach(OUT, ONE, ADDRESSES[ONE], 8000)[0]
    assert not reach(TEN, ONE, ADDRESSES[ONE], 8000)[0]
    assert not reach(TEN, ONE, ADDRESSES[HOST], 8000)[0]


def test_host_services(state_dir: Path) -> None:
    policy(state_dir, host_services=[{"port": 53, "proto": "udp"}])
    assert reach(ONE, HOST, "10.213.0.1", 53, udp=True)[0]
    assert not reach(ONE, HOST, "10.213.0.1", 53)[0]
    assert not reach(TEN, HOST, "10.213.0.5", 53, udp=True)[0]


@pytest.mark.parametrize(
    ("address", "prefix"), [("10.213.0.99", 32), ("10.213.0.6", 32), ("198.51.100.77", 32), ("fd00:0:0:2::2", 128)]
)
def test_a_forged_source_is_dropped(state_dir: Path, address: str, prefix: int) -> None:
    target, own = (ADDRESSES6[OUT], ADDRESSES6[ONE]) if ":" in address else (ADDRESSES[OUT], ADDRESSES[ONE])
    ip("-n", ONE, "address", "add", f"{address}/{prefix}", "dev", "eth0", *(["nodad"] if ":" in address else []))
    try:
        # Without the rules the packet arrives, whoever would get the answer.
        assert reach(ONE, OUT, target, 7000, udp=True, bound=address)[1] == address
        policy(state_dir)
        assert reach(ONE, OUT, target, 7000, udp=True, bound=own)[0]
        assert reach(ONE, OUT, target, 7000, udp=True, bound=address)[1] is None
    finally:
        ip("-n", ONE, "address", "delete", f"{address}/{prefix}", "dev", "eth0")


def test_a_forged_mac_is_dropped(state_dir: Path) -> None:
    policy(state_dir)
    ip("-n", ONE, "link", "set", "eth0", "address", MACS[TEN])
    try:
        assert not reach(ONE, OUT, ADDRESSES[OUT], 7000)[0]
    finally:
        ip("-n", ONE, "link", "set", "eth0", "address", MACS[ONE])
    assert reach(ONE, OUT, ADDRESSES[OUT], 7000)[0]


def send_frame(namespace: str, frame: bytes) -> None:
    def work() -> bytes:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            raw.send(frame)
        return b""

    inside(namespace, work)


def mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def neighbour(address: str) -> str:
    return subprocess.run(
        ["ip", "-n", HOST, "neighbour", "show", address], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("forged", [False, True])
def test_forged_arp_is_dropped(state_dir: Path, forged: bool) -> None:
    policy(state_dir)
    mac = mac_bytes(MACS[ONE])
    sender = socket.inet_aton("10.213.0.6" if forged else ADDRESSES[ONE])
    # RFC 826: a request for the host's address, which has the kernel note the sender.
    arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, sender, bytes(6), socket.inet_aton("10.213.0.1"))
    subprocess.run(["ip", "-n", HOST, "neighbour", "flush", "dev", "chtap1"], check=True)
    before = counted("arp", "input", "forged")
    send_frame(ONE, b"\xff" * 6 + mac + b"\x08\x06" + arp)
    assert (counted("arp", "input", "forged") > before) is forged
    assert (MACS[ONE] in neighbour(ADDRESSES[ONE])) is not forged


def counted(table_family: str, chain: str, purpose: str) -> int:
    """Return how many packets the rule with this purpose has dropped."""
    argv = ["nft", "--json", "list", "chain", table_family, "cloud_hypervisor", chain]
    shown = json.loads(InHost().run(argv).stdout)["nftables"]
    rules = [entry["rule"] for entry in shown if "rule" in entry and entry["rule"]["comment"].startswith(purpose)]
    return sum(part["counter"]["packets"] for rule in rules for part in rule["expr"] if "counter" in part)


def test_router_advertisements_and_dhcp_answers_are_dropped(state_dir: Path) -> None:
    policy(state_dir)

    def advertise() -> bytes:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
            raw.bind((ADDRESSES6[ONE], 0))
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            raw.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("fd00:0:0:1::1", 0))
        return b""

    def answer_dhcp() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind((ADDRESSES[ONE], 67))
            server.sendto(b"offer", ("10.213.0.1", 68))
        return b""

    for work, purpose in ((advertise, "forged"), (answer_dhcp, "no DHCP server")):
        before = counted("inet", "source", purpose)
        inside(ONE, work)
        assert counted("inet", "source", purpose) == before + 1


def test_removal_leaves_the_other_and_the_last_leaves_nothing(state_dir: Path) -> None:
    policy(state_dir)
    ensure(state_dir, {"name": "one", "state": "absent"})
    assert reach(ONE, HOST, "10.213.0.1", 7000)[0], "VM one is free of rules"
    assert not reach(TEN, HOST, "10.213.0.5", 7000)[0], "VM ten still has its own"
    assert reach(TEN, OUT, ADDRESSES[OUT], 7000)[0]
    ensure(state_dir, {"name": "ten", "state": "absent"})
    assert InHost().run(["nft", "list", "tables"]).stdout == ""
    assert list(state_dir.iterdir()) == []


@pytest.mark.parametrize(
    "harm",
    [
        ["nft", "delete", "element", "inet", "cloud_hypervisor", "taps", "{ chtap1 }"],
        ["nft", "flush", "set", "inet", "cloud_hypervisor", "sources4"],
        ["nft", "flush", "chain", "inet", "cloud_hypervisor", "forward"],
        ["nft", "delete", "table", "arp", "cloud_hypervisor"],
        ["nft", "flush", "ruleset"],
    ],
    ids=lambda argv: " ".join(argv[1:4]),
)
def test_harm_is_found_and_repaired(state_dir: Path, harm: list[str]) -> None:
    policy(state_dir)
    whole = InHost().run(["nft", "--stateless", "list", "ruleset"]).stdout
    assert not ensure(state_dir, VMS[ONE], VMS[TEN]).outcomes["one"].changed  # type: ignore[union-attr]
    InHost().run(harm)
    assert ensure(state_dir, VMS[ONE], check_mode=True).outcomes["one"].changed  # type: ignore[union-attr]
    assert ensure(state_dir, VMS[ONE]).outcomes["one"].changed  # type: ignore[union-attr]
    assert sorted(InHost().run(["nft", "--stateless", "list", "ruleset"]).stdout) == sorted(whole)


def test_the_file_for_the_next_boot_is_what_is_loaded(state_dir: Path) -> None:
    policy(state_dir, forwards=[{"port": "8000-8003", "sources": ["198.51.100.0/24"]}])
    whole = InHost().run(["nft", "--stateless", "list", "ruleset"]).stdout
    InHost().run(["nft", "flush", "ruleset"])
    InHost().run(["nft", "--file", str(state_dir / "nftables/cloud_hypervisor.nft")])
    assert InHost().run(["nft", "--stateless", "list", "ruleset"]).stdout == whole
    assert not ensure(state_dir, VMS[TEN]).outcomes["ten"].changed  # type: ignore[union-attr]


def test_a_port_that_a_process_has_is_refused(state_dir: Path) -> None:
    listener = Listener(HOST, 8000, socket.SOCK_STREAM, socket.AF_INET)
    try:
        error = ensure(state_dir, {**VMS[ONE], "forwards": [{"port": 8000}]}).outcomes["one"]
    finally:
        listener.close()
    assert str(error).startswith("VM 'one', option 'forwards.port': a process of the host listens on 8000/tcp already")
    assert InHost().run(["nft", "list", "tables"]).stdout == ""


def test_the_same_port_for_two_vms_is_refused(state_dir: Path) -> None:
    forwards = {"forwards": [{"port": 8000}]}
    report = ensure(state_dir, {**VMS[ONE], **forwards}, {**VMS[TEN], **forwards})
    assert "the host's port 8000/tcp is forwarded to VM 'one' already" in str(report.outcomes["ten"])
    assert reach(OUT, ONE, ADDRESSES[HOST], 8000)[0]


def test_an_unknown_uplink_is_named(state_dir: Path) -> None:
    with pytest.raises(MicrovmError, match="option 'uplink': there is no interface 'wan0' on the host; there are lo, "):
        firewall.ensure([VMS[ONE]], state_dir=state_dir, runner=InHost(), uplink="wan0")
    assert InHost().run(["nft", "list", "tables"]).stdout == ""


def test_a_chain_that_drops_what_is_accepted_here_is_named(state_dir: Path) -> None:
    InHost().run(
        [
            "nft",
            "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
        ]
    )
    try:
        assert ensure(state_dir, VMS[ONE]).foreign_drops == ["ip filter FORWARD"]
    finally:
        InHost().run(["nft", "delete", "table", "ip", "filter"])
