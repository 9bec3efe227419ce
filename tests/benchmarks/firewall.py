# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Print what a VM costs in the firewall: to add the first, the hundredth and the thousandth, and to send a packet by it.

Usage: firewall.py [COUNT]

Beside ours stand the same policy as lists of rules, in nft and in iptables, as they are written where there are few VMs. Each
packet goes in through the TAP of the VM that was added last and comes out of the uplink's. In a network namespace of its own;
needs root.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "firewall"))

from lab import HOST_MAC, Lab, Link
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import firewall
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.addressing import derived_mac
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.firewall_rules import PRIVATE4

OUTSIDE, HOST = "198.51.100.2", "198.51.100.1"
PRIVATE = [f"{address}/{length}" for address, length in PRIVATE4]
ROUNDS, PACKETS = 7, 5000


def vm(number: int) -> dict[str, Any]:
    address = IPv4Address("10.128.0.2") + 4 * number
    return {"name": f"vm{number}", "tap": f"chtap{number}", "mac": derived_mac(address), "address": str(address)}


@contextmanager
def host(count: int) -> Iterator[Lab]:
    """Yield a host with the TAP of the last VM and with an uplink."""
    last = vm(count - 1)
    links = [
        Link(last["tap"], (f"{IPv4Address(last['address']) - 1}/30",), last["mac"], (last["address"],)),
        Link("up0", (f"{HOST}/24",), "02:00:00:00:00:01", (OUTSIDE,)),
    ]
    settings = ["net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0"]
    lab = Lab("fw-benchmark", links, settings, [["route", "add", "default", "via", OUTSIDE]])
    try:
        yield lab
    finally:
        lab.close()


# ---- The same policy, three times: load it for so many VMs, and return how one of them is removed and added again ----

Change = Callable[[], None]


def ours(lab: Lab, count: int, state_dir: Path) -> tuple[Change, Change]:
    vms = [vm(number) for number in range(count)]
    firewall.ensure(vms, state_dir=state_dir, runner=lab.runner)
    last = vms[-1]

    def change(item: dict[str, Any]) -> None:
        firewall.ensure([item], state_dir=state_dir, runner=lab.runner)

    return lambda: change({"name": last["name"], "state": "absent"}), lambda: change(last)


def nft_rules(lab: Lab, count: int, _state_dir: Path) -> tuple[Change, Change]:
    table = "add table inet linear\ndelete table inet linear\nadd table inet linear\n"
    for chain, hook, priority, kind in (
        ("source", "prerouting", "raw", "filter"),
        ("forward", "forward", "filter", "filter"),
        ("input", "input", "filter", "filter"),
        ("deliver", "postrouting", "filter", "filter"),
        ("nat", "postrouting", "srcnat", "nat"),
    ):
        table += f"add chain inet linear {chain} {{ type {kind} hook {hook} priority {priority}; }}\n"
    table += "add rule inet linear forward ct state established,related accept\n"
    rules = "".join("".join(f"add rule inet linear {rule}\n" for rule in _nft(vm(number))) for number in range(count))
    ends = "".join(
        f"add rule inet linear {chain} {key} chtap* drop\n"
        for chain, key in (
            ("source", "iifname"),
            ("forward", "iifname"),
            ("forward", "oifname"),
            ("deliver", "oifname"),
        )
    )

    def load(text: str) -> None:
        lab.runner.run(["nft", "--file", "-"], stdin=text)

    load(table + rules + ends)
    last = "".join(f"insert rule inet linear {rule}\n" for rule in _nft(vm(count - 1)))
    # A rule is removed by its handle, for which all are listed.
    return lambda: load(table + rules + ends), lambda: load(last)


def _nft(one: dict[str, Any]) -> Iterator[str]:
    tap, mac, address = one["tap"], one["mac"], one["address"]
    yield f"source iifname {tap} ether saddr {mac} ip saddr {address} accept"
    yield f"forward iifname {tap} ip daddr {{ {', '.join(PRIVATE)} }} drop"
    yield f"forward iifname {tap} oifname up0 accept"
    yield f"input iifname {tap} drop"
    yield f"deliver oifname {tap} ip daddr {address} accept"
    yield f"nat oifname up0 ip saddr {address} masquerade"


def iptables(lab: Lab, count: int, _state_dir: Path) -> tuple[Change, Change]:
    tables: dict[str, list[str]] = {
        "raw": [],
        "filter": ["-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"],
        "mangle": [],
        "nat": [],
    }
    for number in range(count):
        for table, rule in _iptables(vm(number)):
            tables[table].append(rule)
    tables["raw"].append("-A PREROUTING -i chtap+ -j DROP")
    tables["filter"] += ["-A FORWARD -i chtap+ -j DROP", "-A FORWARD -o chtap+ -j DROP"]
    tables["mangle"].append("-A POSTROUTING -o chtap+ -j DROP")
    lines = [line for table, rules in tables.items() for line in (f"*{table}", *rules, "COMMIT")]
    lab.runner.run(["iptables-legacy-restore"], stdin="\n".join(lines) + "\n")

    def change(verb: str) -> None:
        added = [
            line
            for table, rule in _iptables(vm(count - 1))
            for line in (f"*{table}", rule.replace("-A", verb, 1), "COMMIT")
        ]
        lab.runner.run(["iptables-legacy-restore", "--noflush"], stdin="\n".join(added) + "\n")

    return lambda: change("-D"), lambda: change("-I")


def _iptables(one: dict[str, Any]) -> Iterator[tuple[str, str]]:
    tap, mac, address = one["tap"], one["mac"], one["address"]
    yield "raw", f"-A PREROUTING -i {tap} -m mac --mac-source {mac} -s {address} -j ACCEPT"
    for network in PRIVATE:
        yield "filter", f"-A FORWARD -i {tap} -d {network} -j DROP"
    yield "filter", f"-A FORWARD -i {tap} -o up0 -j ACCEPT"
    yield "filter", f"-A INPUT -i {tap} -j DROP"
    yield "mangle", f"-A POSTROUTING -o {tap} -d {address} -j ACCEPT"
    yield "nat", f"-A POSTROUTING -o up0 -s {address} -j MASQUERADE"


def nothing(_lab: Lab, _count: int, _state_dir: Path) -> tuple[Change, Change]:
    return (lambda: None), (lambda: None)


# ---- Measuring ----


def milliseconds_to_add(remove: Change, add: Change) -> float:
    """Return the median over some rounds."""
    taken = []
    for _time in range(ROUNDS):
        remove()
        start = time.perf_counter()
        add()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1000


def packets_per_second(lab: Lab, count: int, *, known: bool) -> float:
    """Return the best of some rounds, with packets that belong to a connection or that each could begin one."""
    last = vm(count - 1)
    lab.forget_connections()
    out = Ether(src=last["mac"], dst=HOST_MAC) / IP(src=last["address"], dst=OUTSIDE) / UDP(sport=7, dport=7)
    frame = bytes(out / (b"." * 64))
    lab.send(last["tap"], frame)
    seen = [Ether(packet) for place, packet in lab.received() if place == "up0"]
    assert any(UDP in packet for packet in seen), "the packet did not come out"
    if known:
        source = next(packet[IP].src for packet in seen if UDP in packet)
        back = Ether(src="02:00:00:00:00:01", dst=HOST_MAC) / IP(src=OUTSIDE, dst=source) / UDP(sport=7, dport=7)
        lab.send("up0", bytes(back))
        assert any(place == last["tap"] for place, _frame in lab.received()), "the answer did not come out"
    rates = []
    for _time in range(ROUNDS):
        through = 0
        start = time.perf_counter()
        for _time in range(PACKETS // 250):
            for _time in range(250):
                lab.send(last["tap"], frame)
            through += sum(1 for _frame in lab.received())
        rates.append(through / (time.perf_counter() - start))
        assert through >= PACKETS, f"{through} of {PACKETS} packets came out"
    return max(rates)


def main() -> None:
    """Measure and print."""
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    counts = sorted({1, max(1, most // 10), most})
    added: dict[str, dict[int, float]] = {}
    rates: dict[str, dict[int, tuple[float, float]]] = {}
    for policy in (nothing, ours, nft_rules, iptables):
        for count in counts:
            with host(count) as lab, tempfile.TemporaryDirectory() as directory:
                remove, add = policy(lab, count, Path(directory))
                known, new = (packets_per_second(lab, count, known=known) for known in (True, False))
                rates.setdefault(policy.__name__, {})[count] = known, new
                if policy is not nothing:
                    added.setdefault(policy.__name__, {})[count] = milliseconds_to_add(remove, add)
    print(f"{'to add one VM to':<18} {'VMs':>6} {'ms':>10} {'ratio to one':>14}")
    for name, by_count in added.items():
        for count in counts:
            print(f"{name:<18} {count - 1:>6} {by_count[count]:>10.1f} {by_count[count] / by_count[1]:>14.2f}")
    print()
    print(
        f"{'packets a second':<18} {'VMs':>6} {'known':>10} {'to one VM':>10} {'new':>10} {'to one VM':>10} {'to ours':>10}"
    )
    for name, per_second in rates.items():
        for count in counts:
            known, new = per_second[count]
            print(
                f"{name:<18} {count:>6} {known:>10.0f} {known / per_second[1][0]:>10.2f} {new:>10.0f} "
                f"{new / per_second[1][1]:>10.2f} {new / rates['ours'][count][1]:>10.2f}"
            )


if __name__ == "__main__":
    main()
