# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From one state of the firewall to the next, with the real nft: VMs come, change and go; harm is found; nothing is left."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from packets import IP_CLASS, UDP, Case, Raw, Seen, observe, row
from world import ADDRESSES, GATEWAYS, VMS

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import (
    firewall,
    firewall_counters,
    firewall_rules,
)
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.bulk import Outcome
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.runner import Completed, HostRunner

ONE, TEN, WEB, SLOW = (VMS[name] for name in ("one", "ten", "web1", "slow"))
ALL = (ONE, TEN, WEB, SLOW)


class Recording:
    """Runs commands in the lab, and keeps their names."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.ran: list[str] = []

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        self.ran.append(" ".join(argv))
        return self.lab.runner.run(argv, **options)


class Host:
    """The firewall of the lab's host, with its files in a directory of the test's."""

    def __init__(self, lab: Lab, state_dir: Path) -> None:
        self.lab, self.state_dir, self.runner = lab, state_dir, Recording(lab)

    def ensure(self, *items: Mapping[str, Any], **options: Any) -> firewall.Report:
        self.runner.ran.clear()
        return firewall.ensure(items, state_dir=self.state_dir, runner=self.runner, **options)

    def done(self, *items: Mapping[str, Any], **options: Any) -> dict[str, Outcome]:
        """Ensure, and return what was done where nothing may fail."""
        outcomes = self.ensure(*items, **options).outcomes
        assert all(isinstance(outcome, Outcome) for outcome in outcomes.values()), outcomes
        return outcomes  # type: ignore[return-value]

    def nft(self, *argv: str) -> str:
        return self.lab.runner.run(["nft", *argv]).stdout

    def ruleset(self) -> list[str]:
        """All that nft lists, but counts and in which order it was made."""
        entries = json.loads(self.nft("--json", "--stateless", "list", "ruleset"))["nftables"]
        for entry in entries:
            for body in entry.values():
                body.pop("handle", None)
                if "elem" in body:
                    body["elem"].sort(key=json.dumps)
        return sorted(map(json.dumps, entries))

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.state_dir)): path.read_bytes()
            for path in self.state_dir.rglob("*")
            if path.is_file()
        }

    @property
    def looked_at_all(self) -> bool:
        return any("--json --stateless list table" in command for command in self.runner.ran)


@pytest.fixture
def host(lab: Lab, tmp_path: Path) -> Iterator[Host]:
    lab.runner.run(["nft", "flush", "ruleset"])
    yield Host(lab, tmp_path)
    lab.runner.run(["nft", "flush", "ruleset"])


def absent(*vms: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": vm["name"], "state": "absent"} for vm in vms]


def test_a_second_run_changes_nothing(host: Host) -> None:
    assert all(outcome.changed for outcome in host.done(*ALL).values())
    before = host.ruleset(), host.files()
    assert not any(outcome.changed for outcome in host.done(*ALL).values())
    for vm in ALL:
        assert not host.done(vm)[vm["name"]].changed
        assert not host.looked_at_all
    assert (host.ruleset(), host.files()) == before


def test_spelling_is_no_change(host: Host) -> None:
    host.done(*ALL)
    other = {**ONE, "mac": ONE["mac"].upper(), "address6": ONE["address6"].replace("::", ":0::")}
    assert other != ONE
    assert not host.done(other)["one"].changed


def test_check_mode_tells_what_a_run_does(host: Host) -> None:
    def both(*items: Mapping[str, Any]) -> dict[str, Outcome]:
        before = host.ruleset(), host.files()
        told = host.done(*items, check_mode=True)
        assert (host.ruleset(), host.files()) == before
        done = host.done(*items)
        assert told == done
        return done

    assert both(ONE, TEN)["one"].actions[1:] == ("loaded the rules", "wrote the rules for the next boot")
    assert both(WEB)["web1"].after == both({**WEB, "groups": []})["web1"].before
    assert both(*absent(WEB))["web1"].actions == ("removed 20 elements", "removed the rules for the next boot")
    both(*absent(ONE, TEN))
    assert list(host.state_dir.iterdir()) == []


def test_a_vm_comes_changes_and_goes_without_a_look_at_the_others(host: Host) -> None:
    host.done(ONE, TEN)
    alone, files = host.ruleset(), host.files()
    for change in (
        WEB,
        {**WEB, "groups": ["other"]},
        {
            **WEB,
            "groups": ["other", "third"],
            "new_connections": {"out": {"rate": 3}, "in": {"rate": 4, "per": "minute"}},
        },
        {**WEB, "new_connections": {"out": {"rate": 5}}},
        {**WEB, "forwards": [{"port": "9000-9010"}], "egress": {"policy": "none", "allow": [{"cidr": "10.0.0.0/8"}]}},
        {**WEB, "forwards": [{"port": "9005-9015", "sources": ["192.0.2.0/24"]}], "host_services": [{"port": 53}]},
        {**WEB, "address": "10.213.7.2", "mac": "02:63:0a:d5:07:02", "tap": "chtap777"},
    ):
        outcome = host.done(change)["web1"]
        assert outcome.changed and outcome.actions
        assert not host.looked_at_all
        # The kernel has what a load of everything would bring.
        incremental = host.ruleset()
        host.nft("--file", str(host.state_dir / "nftables/cloud_hypervisor.nft"))
        assert host.ruleset() == incremental
    assert host.done(*absent(WEB))["web1"].changed
    assert not host.looked_at_all
    assert (host.ruleset(), host.files()) == (alone, files)


def test_removal_leaves_the_other_and_the_last_leaves_nothing(host: Host) -> None:
    host.done(TEN)
    alone, files = host.ruleset(), host.files()
    host.done(ONE)
    host.done(*absent(ONE))
    assert (host.ruleset(), host.files()) == (alone, files)
    host.nft("add", "table", "inet", "other")
    host.done(*absent(TEN))
    assert host.nft("list", "ruleset") == "table inet other {\n}\n"
    assert list(host.state_dir.iterdir()) == []
    assert not host.done(*absent(TEN))["ten"].changed


ELEMENTS = ["element", "inet", "cloud_hypervisor"]


@pytest.mark.parametrize("asked", [(ONE,), ALL], ids=["one", "all"])
@pytest.mark.parametrize(
    "harm",
    [
        ["delete", *ELEMENTS, "taps", "{ chtap1 }"],
        ["delete", *ELEMENTS, "guests4", "{ 198.51.100.1 . udp . 8200 }"],
        ["add", *ELEMENTS, "macs", "{ chtap1 . 02:00:00:00:00:99 }"],
        ["add", *ELEMENTS, "egress_any", "{ chtap10 }"],
        ["delete", *ELEMENTS, "egress_nets4", "{ chtap10 . 203.0.113.0/24 }"],
        ["add", *ELEMENTS, "uplinks", "{ lan0 }"],
        ["flush", "set", "inet", "cloud_hypervisor", "sources4"],
        ["flush", "chain", "inet", "cloud_hypervisor", "forward"],
        ["insert", "rule", "inet", "cloud_hypervisor", "input", "accept"],
        ["add", "chain", "inet", "cloud_hypervisor", "input", "{ policy drop; }"],
        ["delete", "table", "arp", "cloud_hypervisor"],
        ["flush", "ruleset"],
    ],
    ids=lambda harm: " ".join(harm) if isinstance(harm[0], str) else None,
)
def test_harm_is_found_and_repaired(host: Host, harm: list[str], asked: tuple[dict[str, Any], ...]) -> None:
    host.done(*ALL)
    whole = host.ruleset()
    host.nft(*harm)
    assert host.ruleset() != whole
    # What is of no VM in question, nor of the rules, waits for a run that is about all.
    waits = len(asked) == 1 and ("chtap10" in harm[-1] or ("add" in harm[0] and "element" in harm))
    told = host.ensure(*asked, check_mode=True)
    done = host.ensure(*asked)
    changed = [name for name, outcome in done.outcomes.items() if isinstance(outcome, Outcome) and outcome.changed]
    assert bool(changed or done.repaired) is not waits
    assert (told.outcomes, told.repaired) == (done.outcomes, done.repaired)
    assert (host.ruleset() == whole) is not waits
    assert not any(outcome.changed for outcome in host.done(*asked).values())


@pytest.mark.parametrize("harm", ["a VM's file", "a strange file", "the rules", "the record"])
def test_harm_to_the_files_is_repaired(host: Host, harm: str) -> None:
    host.done(*ALL)
    files, ruleset = host.files(), host.ruleset()
    directory = host.state_dir / "nftables"
    if harm == "a VM's file":
        (directory / "vms/one.nft").write_text("")
    elif harm == "a strange file":
        (directory / "vms/strange.nft").write_text("flush ruleset\n")
    else:
        (directory / ("cloud_hypervisor.nft" if harm == "the rules" else "firewall.json")).unlink()
    host.done(*ALL)
    assert (host.files(), host.ruleset()) == (files, ruleset)


def test_a_record_that_is_none_is_named(host: Host) -> None:
    host.done(ONE)
    (host.state_dir / "nftables/firewall.json").write_text("{")
    with pytest.raises(MicrovmError, match="firewall.json' is not what was written .*; remove it and ask for all VMs"):
        host.ensure(ONE)


def test_the_files_for_the_next_boot_are_what_is_loaded(host: Host) -> None:
    host.done(*VMS.values())
    whole = host.ruleset()
    host.nft("flush", "ruleset")
    host.nft("--file", str(host.state_dir / "nftables/cloud_hypervisor.nft"))
    assert host.ruleset() == whole
    # A second time, as by a reload of nftables.service, it is the same.
    host.nft("--file", str(host.state_dir / "nftables/cloud_hypervisor.nft"))
    assert host.ruleset() == whole
    assert not any(outcome.changed for outcome in host.done(*VMS.values()).values())


def test_taps_that_are_called_as_words_of_the_language(host: Host) -> None:
    host.done(*({**vm, "tap": tap} for vm, tap in zip(ALL, ("accept", "0", "inet", "set-x.y_z"), strict=True)))
    whole = host.ruleset()
    host.nft("--file", str(host.state_dir / "nftables/cloud_hypervisor.nft"))
    assert host.ruleset() == whole


def test_the_uplink_moves(host: Host) -> None:
    host.done(ONE, TEN)
    report = host.ensure(ONE, uplink="lan0")
    assert report.uplinks == ["lan0"]
    assert report.repaired == ['uplinks: "lan0"', 'uplinks: "up0"']
    assert not host.looked_at_all
    loaded = host.ruleset()
    host.nft("--file", str(host.state_dir / "nftables/cloud_hypervisor.nft"))
    assert host.ruleset() == loaded


def test_the_uplink_that_was_given_stays(host: Host) -> None:
    assert host.ensure(ONE, TEN).uplinks == ["up0"]
    host.ensure(ONE, uplink="lan0")
    assert host.ensure(TEN).uplinks == ["lan0"]
    assert host.ensure(*absent(TEN)).uplinks == ["lan0"]
    host.done(*absent(ONE))
    assert host.ensure(ONE).uplinks == ["up0"]


def test_diff_shows_elements(host: Host) -> None:
    host.done(*ALL)
    outcome = host.done({**WEB, "host_services": [{"port": "53-54", "proto": "udp"}]})["web1"]
    before, after = (set((shown or {})["elements"]) for shown in (outcome.before, outcome.after))
    assert after - before == {'host_services: {"concat": ["chtap103", "udp", {"range": [53, 54]}]}'}


def test_counters(host: Host, lab: Lab) -> None:
    host.done(ONE, TEN)
    gather = firewall_counters.gather
    nothing = gather(["one", "other"], state_dir=host.state_dir, runner=lab.runner)
    assert nothing["other"] == Outcome(False, {"state": "absent"})
    assert isinstance(nothing["one"], Outcome)
    assert nothing["one"].facts["sent"] == nothing["one"].facts["dropped"]["forged"] == {"packets": 0, "bytes": 0}
    for version, header in ((4, 20), (6, 40)):
        body = UDP(dport=7000) / Raw(b"." * 100)
        packet = IP_CLASS[version](src=GATEWAYS["ten"][version], dst=ADDRESSES["ten"][version]) / body
        assert len(packet) == header + 108
        lab.send_from_host(bytes(packet))
    told = gather(None, state_dir=host.state_dir, runner=lab.runner)
    assert set(told) == {"one", "ten"}
    assert told["ten"].facts["received"] == {"packets": 2, "bytes": 20 + 108 + 40 + 108}  # type: ignore[union-attr]
    assert told["ten"].facts["state"] == "present"  # type: ignore[union-attr]
    host.nft("delete", *ELEMENTS, "taps", "{ chtap10 }")
    told = gather(["ten"], state_dir=host.state_dir, runner=lab.runner)
    assert told["ten"].facts["state"] == "broken"  # type: ignore[union-attr]


@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_does_not_go_on_with_who_gets_the_address_next(host: Host, lab: Lab, version: int) -> None:
    host.done(ONE)
    (case,) = row("", "out", "host", "udp 8000", "one", at=("one", 90), versions=(version,), answered=True)
    assert observe(lab, [case]) == [step.seen for step in case.steps]
    # It has gone on while it could.
    assert observe(lab, [Case("", case.steps[:1])]) == [case.steps[0].seen]
    host.done(*absent(ONE))
    other = {key: value for key, value in ONE.items() if key not in ("forwards", "host_services")}
    host.done({**other, "name": "other"})
    assert observe(lab, [Case("", case.steps[:1])]) == [frozenset({Seen("host")})]


# ---- What is refused: before anything changes ----


def refused(host: Host, *items: Mapping[str, Any]) -> dict[str, str]:
    """Ensure, and return the errors where nothing may change."""
    before = host.ruleset(), host.files()
    outcomes = host.ensure(*items).outcomes
    assert (host.ruleset(), host.files()) == before
    return {name: str(outcome) for name, outcome in outcomes.items() if isinstance(outcome, MicrovmError)}


@pytest.mark.parametrize("address", ["", "198.51.100.1", "2001:db8::1"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_port_that_a_process_has(host: Host, lab: Lab, kind: socket.SocketKind, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    proto, other = ("tcp", "udp") if kind == socket.SOCK_STREAM else ("udp", "tcp")
    with lab.inside(socket.socket, family, kind) as server:
        server.bind((address, 8000))
        if kind == socket.SOCK_STREAM:
            server.listen()
        error = refused(host, {**ONE, "forwards": [{"port": "7999-8001", "proto": proto}]})["one"]
        assert error.startswith(
            f"VM 'one', option 'forwards.port': a process of the host listens on 8000/{proto} already"
        )
        if address:
            host.done({**ONE, "forwards": [{"port": 8000, "proto": proto, "host_address": "192.168.7.1"}]})
        host.done({**ONE, "forwards": [{"port": 8000, "proto": other}]})


def test_what_another_has(host: Host) -> None:
    host.done(ONE, TEN)
    for option, other in (
        ("tap", "chtap1"),
        ("mac", ONE["mac"]),
        ("address", ONE["address"]),
        ("address6", ONE["address6"]),
    ):
        assert refused(host, {**WEB, option: other}) == {
            "web1": f"VM 'web1', option '{option}': {other} is that of VM 'one'"
        }
    for forward in ({"port": 8100, "proto": "udp"}, {"port": "8000-9000"}, {"port": 8200, "proto": "udp"}):
        assert "is forwarded to VM 'one' already" in refused(host, {**WEB, "forwards": [forward]})["web1"]
    assert (
        "is forwarded to the same VM already"
        in refused(host, {**WEB, "forwards": [{"port": 1}, {"port": "1-2"}]})["web1"]
    )


def test_one_is_refused_and_the_others_have_their_way(host: Host) -> None:
    host.done({**ONE, "forwards": [{"port": 80}]}, {**TEN, "forwards": [{"port": 81}]})
    before = host.ruleset()
    # Ten asks for one's port; one, for another that is bad; web for the one that ten keeps.
    report = host.ensure(
        {**ONE, "forwards": [{"port": "0"}]}, {**TEN, "forwards": [{"port": 80}]}, {**WEB, "forwards": [{"port": 81}]}
    )
    assert {name: str(error).partition(": ")[2] for name, error in report.outcomes.items()} == {
        "one": "'0' is neither a port, 1 to 65535, nor a range such as 8000-8010",
        "ten": "the host's port 80/tcp is forwarded to VM 'one' already",
        "web1": "the host's port 81/tcp is forwarded to VM 'ten' already",
    }
    assert host.ruleset() == before
    # And what a refused one asks for is the next one's.
    report = host.ensure({**SLOW, "tap": "chtap1", "forwards": [{"port": 99}]}, {**WEB, "forwards": [{"port": 99}]})
    assert isinstance(report.outcomes["slow"], MicrovmError)
    assert isinstance(report.outcomes["web1"], Outcome)


def test_an_address_that_is_not_in_the_lease(host: Host) -> None:
    assert refused(host, {**ONE, "subnet": "10.213.0.4/30"}) == {
        "one": "VM 'one', option 'address': 10.213.0.2 is not in 10.213.0.4/30, the subnet of the VM's lease"
    }
    assert refused(host, {**ONE, "subnet6": "fd00:0:0:2::/64"}) == {
        "one": "VM 'one', option 'address6': fd00:0:0:1::2 is not in fd00:0:0:2::/64, the subnet of the VM's lease"
    }
    host.done({**ONE, "subnet": "10.213.0.0/30", "subnet6": "fd00:0:0:1::/64"})


def test_an_unknown_uplink(host: Host) -> None:
    with pytest.raises(MicrovmError, match="option 'uplink': there is no interface 'wan0' on the host; there are lo, "):
        host.ensure(ONE, uplink="wan0")
    assert host.nft("list", "tables") == ""


def test_a_host_without_nft(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    programs = tmp_path_factory.mktemp("bin")
    for name in ("ip", "ss"):
        target = HostRunner().run(["sh", "-c", f"command -v {name}"]).stdout.strip()
        (programs / name).symlink_to(target)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(MicrovmError, match="the command 'nft' is not installed on this host"):
        host.lab.inside(lambda: firewall.ensure([ONE], state_dir=host.state_dir, runner=HostRunner()))
    assert host.files() == {}


def test_a_kernel_that_lacks_what_the_rules_need(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    # No kernel does this where a packet comes in (nft_masq_validate).
    key = ("inet", "input")
    beyond = firewall_rules.Chain([("beyond", [{"masquerade": None}])], ("input", 0, "filter"))
    monkeypatch.setattr(firewall_rules, "CHAINS", {**firewall_rules.CHAINS, key: beyond})
    with pytest.raises(
        MicrovmError, match=r"nftables v.*, with Linux .*, refuses the rules; they need nft 1\.0\.6 and Linux"
    ):
        host.ensure(ONE)
    assert host.nft("list", "tables") == ""
    assert host.files() == {}
