# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The typed model of a VM against each release's API document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from documents import VERSIONS, available, directory, document
from vmm_process import Vmm

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import vm_schema, vmm_versions
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_properties import LEFT_OUT, VM
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_schema import Property

pytestmark = pytest.mark.skipif(not available(), reason=f"the API documents are not in {directory()}")

# Properties that a release's own code has and its document has not (vmm/src/vm_config.rs of the release).
DOCUMENTED_LATER = {
    "v43.0": {
        "disks.disable_aio",
        "disks.disable_io_uring",
        "console.socket",
        "net.offload_csum",
        "net.offload_tso",
        "net.offload_ufo",
        "payload.host_data",
        "payload.igvm",
        "platform.sev_snp",
        "serial.file",
        "serial.mode",
        "serial.socket",
        "user_devices",
        "user_devices.id",
        "user_devices.pci_segment",
        "user_devices.socket",
    },
    "v48.0": {
        "disks.disable_aio",
        "disks.disable_io_uring",
        "net.offload_csum",
        "net.offload_tso",
        "net.offload_ufo",
        "platform.iommu_address_width_bits",
        "serial.file",
        "serial.mode",
        "serial.socket",
        "user_devices",
        "user_devices.id",
        "user_devices.pci_segment",
        "user_devices.socket",
    },
    "v53.0": {
        "cpus.profile",
        "disks.disable_aio",
        "disks.disable_io_uring",
        "generic_vhost_user",
    },
}


def places(version: str) -> dict[str, dict[str, Any]]:
    """Return every property below VmConfig in a document, by its place."""
    schemas = document(version).schemas

    def walk(schema: dict[str, Any], at: str) -> Iterator[tuple[str, dict[str, Any]]]:
        schema = schema.get("items", schema)
        if "$ref" in schema:
            schema = schemas[schema["$ref"].rpartition("/")[2]]
        for name, part in schema.get("properties", {}).items():
            yield f"{at}{name}", part
            yield from walk(part, f"{at}{name}.")

    return dict(walk(schemas["VmConfig"], ""))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_property_is_an_option_or_left_out_for_a_reason(version: str) -> None:
    there = places(version)
    assert len(there) > 100, "the document was read"
    unknown = there.keys() - vm_schema.paths(VM) - LEFT_OUT.keys()
    assert not unknown, f"neither options nor left out with a reason: {sorted(unknown)}"


def test_what_is_left_out_is_no_option_and_has_a_reason() -> None:
    assert not LEFT_OUT.keys() & vm_schema.paths(VM)
    assert all(LEFT_OUT.values())


def supported(properties: tuple[Property, ...], version: tuple[int, int], at: str = "") -> Iterator[str]:
    """List the places that the model takes a release to have."""
    for prop in properties:
        if prop.key is None or version < prop.since or (prop.until is not None and version > prop.until):
            continue
        yield f"{at}{prop.key}"
        if prop.encode is None:
            yield from supported(prop.fields, version, f"{at}{prop.key}.")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_model_takes_no_release_for_having_what_it_has_not(version: str) -> None:
    claimed = set(supported(VM, vmm_versions.parse(version)))
    surplus = claimed - places(version).keys() - DOCUMENTED_LATER[version]
    surplus = {place for place in surplus if not place.startswith("generic_vhost_user.")}
    assert not surplus, f"{version} does not have {sorted(surplus)}"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_default_of_the_model_is_the_document_s(version: str) -> None:
    there = places(version)

    def walk(properties: tuple[Property, ...], at: str) -> Iterator[tuple[str, Any, Any]]:
        for prop in properties:
            if prop.key is None:
                continue
            documented = there.get(f"{at}{prop.key}", {})
            if "default" in documented and prop.encode is None and not prop.required:
                yield f"{at}{prop.key}", prop.default, documented["default"]
            yield from walk(prop.fields, f"{at}{prop.key}.")

    differing = [(place, ours, theirs) for place, ours, theirs in walk(VM, "") if ours != theirs]
    assert not differing


# ---- What the VMM itself says ----

# Behind build features that no release's binary has; the VMM drops them silently.
NOT_BUILT_IN = {"platform.tdx", "platform.sev_snp", "payload.igvm", "payload.host_data"}


def everything(properties: tuple[Property, ...], at: str = "") -> dict[str, Any]:
    """Return options that ask for something other than the default of every property, whichever release has it."""
    options: dict[str, Any] = {}
    for prop in properties:
        if prop.option is None or prop.key is None or f"{at}{prop.key}" in NOT_BUILT_IN:
            continue
        value = _other_than_the_default(prop, f"{at}{prop.key}.")
        options[prop.option] = [value] if prop.many else value
    return options


def had(properties: tuple[Property, ...], config: dict[str, Any], release: tuple[int, int]) -> dict[str, Any]:
    """Return what of a VmConfig a release has by the model."""
    result: dict[str, Any] = {}
    for prop in properties:
        gone = prop.until is not None and release > prop.until
        if prop.key not in config or release < prop.since or gone:
            continue
        value = config[prop.key]
        if prop.fields and prop.encode is None:
            parts = [had(prop.fields, part, release) for part in (value if prop.many else [value])]
            value = parts if prop.many else parts[0]
        result[prop.key] = value
    return result


def _other_than_the_default(prop: Property, at: str) -> Any:
    match prop.kind:
        case "dict":
            return everything(prop.fields, at)
        case "bool":
            return not prop.default
        case "choice":
            return next(
                (choice for choice, value in prop.choices.items() if value != prop.default), next(iter(prop.choices))
            )
        case "int" if prop.option == "interval":
            return 2000
        case "int":
            return next(value for value in (3, 4) if value != prop.default) if prop.least <= 3 else prop.least + 1
        case "size":
            return "3MiB"
        case "mac":
            return "02:00:00:00:00:07"
    return f"/{prop.option}"


@pytest.mark.all_releases
def test_a_release_has_what_the_model_says_and_no_more(vmm: Vmm, executable: str) -> None:
    asked = vm_schema.encoded(VM, everything(VM))
    asked["vsock"]["socket"] = "/vsock"
    # These are opened when the VM is created.
    del asked["landlock_enable"]
    for port in ("serial", "console", "debug_console"):
        asked[port] |= {"mode": "Null"}
    # Much of it is in no document of an older release, so not by our client.
    assert vmm.raw("PUT", "vm.create", json.dumps(asked)) == (204, "")
    kept = vm_schema.normalised(VM, json.loads(vmm.raw("GET", "vm.info")[1])["config"])
    wanted = vm_schema.normalised(VM, had(VM, asked, vmm.release))
    # A stand-in for tests takes what it does not emulate only to refuse it when the VM boots.
    if "qemu_vmm" in executable:
        for kind in (
            "devices",
            "fs",
            "generic_vhost_user",
            "numa",
            "pci_segments",
            "pmem",
            "tpm",
            "user_devices",
            "vdpa",
            "rtc",
        ):
            kept.pop(kind, None)
            wanted.pop(kind, None)
    assert kept == wanted
