# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every request that our client can send, against each release's API document."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args

import pytest
from documents import VERSIONS, available, directory, document

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vmm_api import Action, DeviceKind, VmmClient

pytestmark = pytest.mark.skipif(not available(), reason=f"the API documents are not in {directory()}")

# Calls that a release lacks.
LACKING = {
    "v43.0": {"vm.resize-disk", "vm.add-generic-vhost-user", "vm.nmi"},
    "v48.0": {"vm.resize-disk", "vm.add-generic-vhost-user", "vm.nmi"},
    "v53.0": set[str](),
}

DEVICES: dict[str, dict[str, Any]] = {
    "device": {"path": "/sys/bus/pci/devices/0000:00:02.0", "id": "d"},
    "disk": {"path": "/d", "readonly": True, "serial": "s", "id": "d"},
    "fs": {"tag": "t", "socket": "/s", "num_queues": 1, "queue_size": 1024},
    "generic-vhost-user": {"socket": "/s", "queue_sizes": [128], "device_type": 26},
    "net": {"tap": "t", "mac": "12:34:56:78:90:ab", "ip": "192.0.2.1", "mask": "255.255.255.252", "mtu": 1500},
    "pmem": {"file": "/p", "size": 1 << 20, "discard_writes": True},
    "user-device": {"socket": "/s"},
    "vdpa": {"path": "/dev/vhost-vdpa-0", "num_queues": 1},
    "vsock": {"cid": 3, "socket": "/s"},
}
CREATE: dict[str, Any] = {
    "payload": {"kernel": "/k", "initramfs": "/i", "cmdline": "c"},
    "cpus": {"boot_vcpus": 1, "max_vcpus": 2},
    "memory": {"size": 1 << 30, "hotplug_size": 1 << 30},
    "disks": [DEVICES["disk"]],
    "net": [DEVICES["net"]],
    "vsock": DEVICES["vsock"],
    "serial": {"mode": "Pty"},
    "console": {"mode": "Off"},
    "rng": {"src": "/dev/urandom"},
    "watchdog": True,
}

REQUESTS: dict[str, list[Callable[[VmmClient], object]]] = {
    "ping": [lambda vmm: vmm.ping()],
    "vmm_shutdown": [lambda vmm: vmm.vmm_shutdown()],
    "info": [lambda vmm: vmm.info()],
    "counters": [lambda vmm: vmm.counters()],
    "create": [lambda vmm: vmm.create(CREATE)],
    "act": [lambda vmm, action=action: vmm.act(action) for action in get_args(Action)],
    "resize": [lambda vmm: vmm.resize(vcpus=1), lambda vmm: vmm.resize(memory=1 << 30, balloon=0)],
    "resize_disk": [lambda vmm: vmm.resize_disk("d", 1 << 30)],
    "resize_zone": [lambda vmm: vmm.resize_zone("z", 1 << 30)],
    "add": [lambda vmm, kind=kind: vmm.add(kind, DEVICES[kind]) for kind in get_args(DeviceKind)],
    "remove_device": [lambda vmm: vmm.remove_device("d")],
    "snapshot": [lambda vmm: vmm.snapshot("file:///s")],
    "restore": [lambda vmm: vmm.restore("file:///s")],
    "receive_migration": [lambda vmm: vmm.receive_migration("unix:/m")],
    "send_migration": [lambda vmm: vmm.send_migration("unix:/m", local=True)],
}

# What the client leaves out, and why.
LEFT_OUT = {
    "vmm.nmi": "the name that the older documents have for vm.nmi",
    "vm.coredump": "only VMMs that were built with the feature guest_debug have it; those that are released were not",
}


class Recorder(VmmClient):
    """Notes the requests instead of sending them; a VM is there."""

    def __init__(self) -> None:
        super().__init__("/nowhere")
        self.sent: list[tuple[str, str, Any]] = []

    def call(self, method: Any, call: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Note the request."""
        self.sent.append((method, call, body))
        return {"state": "Running", "config": {}} if call == "vm.info" else {}


def test_no_method_is_missing_here() -> None:
    methods = {name for name, _method in inspect.getmembers(VmmClient, inspect.isfunction) if not name.startswith("_")}
    assert REQUESTS.keys() == methods - {"call"}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_of_a_document_is_supported_or_left_out(version: str) -> None:
    recorder = Recorder()
    for requests in REQUESTS.values():
        for request in requests:
            request(recorder)
    sent = {call for _method, call, _body in recorder.sent}
    assert not sent & LEFT_OUT.keys()
    assert document(version).calls() <= sent | LEFT_OUT.keys()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_request_fits(version: str) -> None:
    recorder = Recorder()
    for requests in REQUESTS.values():
        for request in requests:
            request(recorder)
    lacking = set()
    for method, call, body in recorder.sent:
        for misfit in document(version).request(method, call, body):
            assert misfit.undocumented == call, f"{version}: {call}: {misfit}"
            lacking.add(call)
    assert lacking == LACKING[version]


def test_the_check_sees_what_does_not_fit() -> None:
    newest = document("v53.0")
    for call, body in (
        ("vm.create", {**CREATE, "nosuch": 1}),
        ("vm.create", {**CREATE, "disks": [{"path": "/d", "nosuch": 1}]}),
        ("vm.create", {"memory": {"size": 1}}),  # no payload
        ("vm.create", None),
        ("vm.add-vsock", {"cid": 2, "socket": "/s"}),
        ("vm.boot", {}),
        ("vm.nosuch", None),
    ):
        assert list(newest.request("PUT", call, body)), call
    for call, status, body in (
        ("vm.info", 200, {"state": "Running"}),
        ("vm.info", 200, {"state": "Gone", "config": CREATE}),
        ("vm.info", 204, None),
    ):
        assert list(newest.answer("GET", call, status, body)), (call, status)
