# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The planner of changes, on generated VMs and a VMM that is a pure model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_config, vm_drift, vm_plan
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_changes import Call, Change
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_drift import Situation, calls, compare
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_properties import VM
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_schema import Property

PATHS = Paths.of("web", state_dir=Path("/s"), run_dir=Path("/r"))
MIB = 1 << 20
# Nothing depends on the speed, and a run is as good as the next.
SETTINGS = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def config(**options: Any) -> dict[str, Any]:
    return vm_config.parse({"name": "web", "payload": {"kernel": "/k"}, **options}, PATHS).config


# ---- A model of the VMM ----


def filled(properties: Sequence[Property], part: dict[str, Any]) -> dict[str, Any]:
    """Fill in the defaults as vm.info does."""
    result = copy.deepcopy(part)
    for prop in properties:
        if prop.key is None:
            continue
        if prop.default is not None and prop.since < (53, 1) and prop.until is None:
            result.setdefault(prop.key, prop.default)
        if prop.fields and prop.encode is None and result.get(prop.key) is not None:
            value = result[prop.key]
            result[prop.key] = (
                [filled(prop.fields, item) for item in value] if prop.many else filled(prop.fields, value)
            )
        if prop.encode is not None:
            for bucket in result.get(prop.key, {}).values():
                bucket.setdefault("one_time_burst", None)
    return result


def booted(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what vm.info says of a VM that has just booted."""
    live = filled(VM, asked)
    for number, net in enumerate(live["net"]):
        net.setdefault("mac", f"2e:00:00:00:00:{number:02x}")
    for name in ("serial", "console"):
        if live[name]["mode"] == "Pty":
            live[name]["file"] = "/dev/pts/7"
    for number, name in enumerate(name for name in ("vsock", "balloon") if name in live):
        live[name].setdefault("id", f"_{name}{number}")
    live["platform"] = filled(next(prop.fields for prop in VM if prop.key == "platform"), live.get("platform", {}))
    if "serial_number" in live["platform"]:
        live["platform"]["system_serial_number"] = live["platform"].pop("serial_number")
    live["landlock_enable"], live["landlock_rules"] = True, [{"path": "/s", "access": "rw"}]
    live["a_property_of_the_next_release"] = 1
    return live


def told(live: dict[str, Any], call: Call) -> None:
    """Do what the VMM does; an AssertionError is a refusal of it."""
    memory = live["memory"]
    match call.what:
        case "vcpus":
            assert 1 <= call.value <= live["cpus"]["max_vcpus"]
            live["cpus"]["boot_vcpus"] = call.value
        case "memory" if memory["hotplug_method"] == "Acpi":
            assert call.value > memory["size"] and (call.value - memory["size"]) % (128 * MIB) == 0
            memory["size"] = call.value
        case "memory":
            assert 0 <= call.value - memory["size"] <= memory["hotplug_size"]
            memory["hotplugged_size"] = call.value - memory["size"]
        case "zone":
            (zone,) = (zone for zone in memory["zones"] if zone["id"] == call.name)
            assert 0 <= call.value - zone["size"] <= zone["hotplug_size"]
            zone["hotplugged_size"] = call.value - zone["size"]
        case "balloon":
            live["balloon"]["size"] = call.value
        case "remove" if call.kind == "vsock":
            assert live.pop("vsock")["id"] == call.name
        case "remove":
            before = live[call.kind]
            live[call.kind] = [device for device in before if device["id"] != call.name]
            assert len(live[call.kind]) == len(before) - 1
        case "add" if call.kind == "vsock":
            assert "vsock" not in live
            live["vsock"] = {**call.value, "id": "_vsock9"}
        case "add":
            _add(live, call)


def _add(live: dict[str, Any], call: Call) -> None:
    others = [device for kind in vm_config.DEVICES for device in live.get(kind) or ()]
    for key in ("id", "tap", "path", "file"):
        taken = [device[key] for device in others if key in device]
        assert call.value.get(key) not in taken or key not in call.value, f"{key} is in use"
    assert call.value.get("num_queues", 1) // (2 if call.kind == "net" else 1) <= live["cpus"]["boot_vcpus"]
    fields = next(prop.fields for prop in VM if prop.key == call.kind)
    device = filled(fields, call.value)
    if call.kind == "net":
        device.setdefault("mac", "2e:ff:ff:ff:ff:ff")
    live.setdefault(call.kind, []).append(device)


def carried_out(live: dict[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    result = copy.deepcopy(live)
    for call in calls(changes):
        told(result, call)
    return result


# ---- Generated VMs ----

cpus = st.integers(1, 4).flatmap(
    lambda most: st.fixed_dictionaries({"boot": st.integers(1, most), "max": st.just(most)})
)
sizes = st.sampled_from(["128MiB", "256MiB", "384MiB", "200MiB"])
plain_memory = st.fixed_dictionaries(
    {"size": sizes, "hotplug_method": st.sampled_from(["acpi", "virtio_mem"])},
    optional={"hotplug_size": st.sampled_from(["128MiB", "256MiB"]), "thp": st.booleans(), "shared": st.booleans()},
)
zone = st.fixed_dictionaries({"size": sizes}, optional={"hotplug_size": st.just("256MiB")})
zoned_memory = st.lists(zone, min_size=1, max_size=2).map(
    lambda zones: {
        "hotplug_method": "virtio_mem",
        "zones": [{"id": f"z{number}", **zone} for number, zone in enumerate(zones)],
    }
)
limit = st.fixed_dictionaries(
    {"ops": st.integers(1, 9)}, optional={"bandwidth": st.just("1MiB"), "ops_burst": st.just(5)}
)
disk = st.fixed_dictionaries(
    {"id": st.sampled_from("abc"), "path": st.sampled_from(["/1", "/2", "/3", "/4.qcow2"])},
    optional={"readonly": st.booleans(), "serial": st.sampled_from("xy"), "rate_limit": limit, "sparse": st.booleans()},
)
net = st.fixed_dictionaries(
    {"id": st.sampled_from("nmo"), "tap": st.sampled_from(["t1", "t2", "t3"])},
    optional={"mac": st.just("02:00:00:00:00:01"), "mtu": st.just(1400), "rate_limit": limit},
)
pmem = st.fixed_dictionaries({"id": st.sampled_from("pq"), "file": st.sampled_from(["/p", "/q"])})


def apart(element: st.SearchStrategy[Any], *keys: str) -> st.SearchStrategy[list[Any]]:
    return st.lists(element, max_size=3, unique_by=tuple(lambda item, key=key: item[key] for key in keys))


vms = st.fixed_dictionaries(
    {
        "cpus": cpus,
        "memory": plain_memory | zoned_memory,
        "disks": apart(disk, "id", "path"),
        "nets": apart(net, "id", "tap"),
        "watchdog": st.booleans(),
        "serial": st.sampled_from([{"mode": "pty"}, {"mode": "file"}, {"mode": "off"}]),
    },
    optional={
        "vsock": st.fixed_dictionaries({"cid": st.integers(3, 4)}),
        "balloon": st.fixed_dictionaries(
            {"size": st.sampled_from(["0", "16MiB"])}, optional={"deflate_on_oom": st.booleans()}
        ),
        "pmem": apart(pmem, "id", "file"),
        "platform": st.fixed_dictionaries({}, optional={"serial_number": st.just("s"), "oem_strings": st.just(["o"])}),
        "rng": st.just({"src": "/dev/random"}),
        "iommu": st.booleans(),
    },
)


@SETTINGS
@given(vms)
def test_a_vm_that_is_as_it_is_asked_for_has_no_drift(options: dict[str, Any]) -> None:
    asked = config(**options)
    assert compare(booted(asked), asked) == ()


@SETTINGS
@given(vms, vms, st.booleans())
def test_live_changes_reach_what_is_asked_for_but_for_what_is_said_to_be_left(
    before: dict[str, Any], after: dict[str, Any], replug: bool
) -> None:
    live, asked = booted(config(**before)), config(**after)
    changes = compare(live, asked, Situation(replug=replug))
    left = compare(carried_out(live, changes), asked, Situation(replug=replug, booted_memory=live["memory"]["size"]))
    assert {change.option for change in left} == {change.option for change in changes if change.how != "live"}
    assert all(change.how != "live" for change in left)
    assert all(change.words for change in changes)


@SETTINGS
@given(vms, vms)
def test_where_nothing_needs_a_restart_nothing_is_left(before: dict[str, Any], after: dict[str, Any]) -> None:
    # Only what can be changed live.
    kept = {key: before[key] for key in ("watchdog", "serial", "platform", "rng", "iommu", "memory") if key in before}
    first = before["disks"][:1]
    rest = [disk for disk in after["disks"] if all(disk[key] != root[key] for root in first for key in ("id", "path"))]
    assume(first or not rest)
    asked = {**after, **kept, "disks": [*first, *rest], "cpus": {**after["cpus"], "max": 4}}
    before = {**before, "cpus": {**before["cpus"], "max": 4}}
    for options in (asked, before):
        options.pop("balloon", None)
        for key in ("platform", "rng", "iommu"):
            if key not in kept:
                options.pop(key, None)
    live = booted(config(**before))
    changes = compare(live, config(**asked), Situation(replug=True))
    assert [change for change in changes if change.how != "live"] == []
    assert compare(carried_out(live, changes), config(**asked)) == ()


# ---- Branches by name ----


def only(before: dict[str, Any], after: dict[str, Any], **situation: Any) -> Change:
    (change,) = compare(booted(config(**before)), config(**after), Situation(**situation))
    return change


ROOT, DATA = {"id": "root", "path": "/root"}, {"id": "data", "path": "/data"}
ACPI = {"size": "128MiB", "hotplug_size": "256MiB"}
VIRTIO = {**ACPI, "hotplug_method": "virtio_mem"}


@pytest.mark.parametrize(
    ("before", "after", "how", "reason"),
    [
        ({"cpus": {"boot": 1, "max": 2}}, {"cpus": {"boot": 2, "max": 2}}, "live", ""),
        ({"memory": ACPI}, {"memory": {**ACPI, "size": "256MiB"}}, "live", ""),
        ({"memory": ACPI}, {"memory": {**ACPI, "size": "129MiB"}}, "restart", "it comes in units of 134217728"),
        ({"memory": ACPI}, {"memory": {**ACPI, "size": "512MiB"}}, "restart", "it has booted with memory.hotplug_size"),
        ({"memory": ACPI}, {"memory": {**ACPI, "size": "64MiB"}}, "restart", "the guest keeps what it has"),
        ({"memory": VIRTIO}, {"memory": {**VIRTIO, "size": "130MiB"}}, "live", ""),
        ({"memory": VIRTIO}, {"memory": {**VIRTIO, "size": "129MiB"}}, "restart", "it comes in units of 2097152"),
        ({"memory": VIRTIO}, {"memory": {**VIRTIO, "size": "64MiB"}}, "restart", "it has booted with 134217728 bytes"),
        ({"memory": VIRTIO}, {"memory": {**VIRTIO, "size": "1GiB"}}, "restart", "it has booted with 134217728 bytes"),
        (
            {"disks": [ROOT]},
            {"disks": [{**ROOT, "path": "/b"}]},
            "refused",
            "it is the root disk, which a VM that runs",
        ),
        ({"disks": [ROOT]}, {"disks": []}, "refused", "it is the root disk, which a VM that runs keeps"),
        ({"disks": [ROOT]}, {"disks": [{**ROOT, "serial": "x"}]}, "restart", "it is the root disk"),
        ({"disks": [ROOT]}, {"disks": [ROOT, DATA]}, "live", ""),
        ({"disks": [ROOT, DATA]}, {"disks": [ROOT]}, "live", ""),
        (
            {"disks": [ROOT, DATA]},
            {"disks": [ROOT, {**DATA, "serial": "x"}]},
            "restart",
            "it would have to be plugged anew",
        ),
        ({}, {"disks": [{**DATA, "iommu": True}]}, "restart", "the VM has booted without a virtual IOMMU"),
        ({}, {"nets": [{"tap": "t", "pci_segment": 1}]}, "restart", "the VM has booted with fewer PCI segments"),
        ({"balloon": {"size": "0"}}, {"balloon": {"size": "1MiB"}}, "live", ""),
        ({}, {"balloon": {}}, "restart", "a balloon comes and goes at a boot only"),
        ({}, {"vsock": {"cid": 3}}, "live", ""),
        ({}, {"rtc": {}}, "restart", ""),
        ({}, {"landlock_rules": [{"path": "/s", "access": "rw"}], "watchdog": True}, "restart", ""),
        ({}, {"numa": [{"guest_numa_id": 0, "cpus": [0]}]}, "restart", ""),
        ({}, {"tpm": {"socket": "/t"}}, "restart", ""),
    ],
)
def test_how_a_difference_goes_away(before: dict[str, Any], after: dict[str, Any], how: str, reason: str) -> None:
    change = only(before, after)
    assert (change.how, reason in change.reason, bool(change.calls)) == (how, True, how == "live"), change


SHARED = {"memory": {"shared": True}}
FS = {"fs": [{"id": "f", "tag": "t", "socket": "/f"}]}


def test_devices_behind_vhost_user_come_where_the_memory_is_shared() -> None:
    assert only(SHARED, {**SHARED, **FS}).calls[0].value["queue_size"] == 1024
    changes = compare(booted(config()), config(**SHARED, **FS))
    assert {(change.option, change.how) for change in changes} == {("memory.shared", "restart"), ("fs.f", "restart")}


@pytest.mark.parametrize(("device_type", "how"), [(2, "live"), (4, "restart")])
def test_a_generic_device_goes_where_the_vmm_takes_its_type_away(device_type: int, how: str) -> None:
    generic = {"id": "g", "socket": "/g", "device_type": device_type, "queue_sizes": [64]}
    assert only({**SHARED, "generic_vhost_user": [generic]}, SHARED).how == how


def test_a_device_whose_name_the_guest_still_holds_does_not_come() -> None:
    change = only({"disks": [ROOT]}, {"disks": [ROOT, DATA]}, lingering=frozenset({"data"}))
    assert (change.how, "has not let go" in change.reason) == ("restart", True)


def test_plugging_anew_takes_away_before_it_adds() -> None:
    change = only({"disks": [ROOT, DATA]}, {"disks": [ROOT, {**DATA, "serial": "x"}]}, replug=True)
    assert [call.what for call in calls([change])] == ["remove", "add"]


def test_what_is_unplugged_and_still_there() -> None:
    tree = {
        "__rng": {},
        "_virtio-pci-__rng": {},
        "_virtio-pci-root": {},
        "root": {},
        "_virtio-pci-data": {},
        "data": {},
    }
    info = {"config": {"disks": [{"id": "root"}], "vsock": None}, "device_tree": tree}
    assert vm_drift.lingering(info) == {"data"}
    assert vm_drift.lingering({"config": {}}) == frozenset()


# ---- What is done about differences ----

LIVE = Change("cpus.boot", 1, 2, "live", calls=(Call("vcpus", value=2),))
RESTART = Change("watchdog", False, True, "restart")
REFUSED = Change("disks.root", "/a", "/b", "refused", "no")


def test_decisions() -> None:
    def decide(
        *changes: Change, apply: Any = "live", wanted: Any = "running", state: Any = "running"
    ) -> vm_plan.Decision:
        return vm_plan.decide(changes, apply=apply, wanted=wanted, state=state)

    assert decide() == vm_plan.Decision()
    assert decide(LIVE, RESTART) == vm_plan.Decision(calls=LIVE.calls, left=(RESTART,))
    assert decide(LIVE, apply="restart") == vm_plan.Decision(calls=LIVE.calls)
    assert decide(LIVE, RESTART, apply="restart") == vm_plan.Decision(restart=True)
    assert decide(LIVE, REFUSED, apply="none") == vm_plan.Decision(left=(LIVE, REFUSED))
    assert decide(LIVE, wanted="present") == vm_plan.Decision(left=(LIVE,))
    assert decide(LIVE, state="created") == vm_plan.Decision(restart=True)
    for apply in ("live", "restart"):
        with pytest.raises(MicrovmError, match="option 'disks.root': disks.root is '/a', not '/b': no"):
            decide(LIVE, REFUSED, apply=apply)
