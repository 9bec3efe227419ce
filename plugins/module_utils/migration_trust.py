# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host believes of a VM that another one offers: that host may have been broken into.

The word of whoever runs the playbook counts for the VMM, its supervisor and its unit. Of the offer, the options count as
far as ch_vm would take them, and name only what is the VM's own, in the image store, or in directories that are allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from . import migration_offer, tap, vm_access, vm_config, vm_record, vm_schema
from .addressing import parse_mac
from .errors import MicrovmError
from .vm_config import Spec
from .vm_options import VM_OPTIONS
from .vm_paths import Paths
from .vm_properties import VM

# The options of ch_vm that are this host's own.
OWN = ("vmm", "supervisor", "unit")
_DEVICES = ("/dev/urandom", "/dev/random", "/dev/hwrng")
_TEXT, _NUMBER = {"type": "str", "required": True}, {"type": "int", "required": True}
_TEXTS = {"type": "list", "elements": "str", "required": True}
_DISK = {"path": _TEXT, "size": _NUMBER, "allocated": _NUMBER}
_NET = {"tap": {"type": "str"}, "host_mac": {"type": "str"}}
# What migration_offer.make and vm_send.offer return.
_OFFER: Mapping[str, Mapping[str, Any]] = {
    "name": _TEXT,
    "record": {"type": "dict", "required": True, "options": VM_OPTIONS},
    "vmm_version": _TEXT,
    "net": {"type": "list", "elements": "dict", "required": True, "options": _NET},
    "copied": {"type": "list", "elements": "dict", "required": True, "options": _DISK},
    "shared": _TEXTS,
    "backing": _TEXTS,
    "files": {"type": "dict", "required": True},
    "probes": _TEXTS,
    "state": {"type": "str", "choices": ["running", "paused"], "required": True},
    "ready": _TEXTS,
    "public_key": {"type": "str"},
}


def options(offer: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the VM that is offered, with this host's own in place of the other's.

    ``item`` has them, and the VM's name. Raises MicrovmError for what no honest host offers.
    """
    given = _without_nulls(offer)
    checked = ArgumentSpecValidator(dict(_OFFER)).validate(given)
    if checked.error_messages:
        raise MicrovmError(f"is none that state=offered returns: {checked.error_messages[0]}", option="offer")
    if not _unchanged(given, checked.validated_parameters):
        raise MicrovmError("has values of other types than state=offered returns", option="offer")
    theirs = dict(offer["record"])
    if not item["name"] == offer["name"] == theirs.get("name"):
        raise MicrovmError(f"is one of the VM {theirs.get('name')!r}, and {item['name']!r} is to come", option="offer")
    mine = {option: item[option] for option in OWN if item.get(option) is not None}
    return {option: value for option, value in theirs.items() if option not in OWN} | mine


def _without_nulls(value: Any) -> Any:
    """Return it without the suboptions that Ansible has filled in: it takes no null for a choice."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _unchanged(given: Any, validated: Any) -> bool:
    """Return whether all that was given is still the same, as it is where Ansible has checked it once before."""
    if isinstance(given, Mapping):
        return isinstance(validated, Mapping) and all(
            _unchanged(part, validated.get(key)) for key, part in given.items()
        )
    if isinstance(given, list):
        return isinstance(validated, list) and all(map(_unchanged, given, validated))
    return type(given) is type(validated) and bool(given == validated)


def spec(options: Mapping[str, Any], offer: Mapping[str, Any], paths: Paths, directories: Iterable[str]) -> Spec:
    """Return what is to be made for the VM. Raises MicrovmError, naming the option, for what is not to be believed."""
    parsed = vm_config.parse(options, paths)
    for net in offer["net"]:
        if net.get("host_mac") is not None:
            parse_mac(net["host_mac"])
    parsed = replace(parsed, taps=tap.with_macs(parsed.taps, offer))
    migration_offer.refuse_bound(parsed.config)
    _check_disks(parsed.config, offer, paths)
    _check_paths(parsed.config, offer["backing"], paths, directories)
    _check_taps(parsed.config, paths)
    return parsed


def _check_disks(config: Mapping[str, Any], offer: Mapping[str, Any], paths: Paths) -> None:
    own = migration_offer.own_disks(config, paths)
    offered = {Path(disk["path"]) for disk in offer["copied"]}
    if set(own) != offered or migration_offer.shared_disks(config, paths) != offer["shared"]:
        odd = sorted(set(own) ^ offered) or sorted(offer["shared"])
        raise MicrovmError(
            f"'{odd[0]}' is among the disks on record or those that the VM runs with, and not among both; have ch_vm bring the "
            f"VM to what is asked for, with the same state_dir as here, '{paths.state_dir}'",
            option="disks",
        )
    for path in own:
        # Records are there as well, of which root takes the word.
        if path.name.startswith(".") or path.suffix == ".json":
            raise MicrovmError(f"'{path}' is the name of a record, not of a disk; give it another", option="disks.path")
    beside = {str(Path(path).parent) for path in offer["shared"]}
    for probe in offer["probes"]:
        if not migration_offer.is_probe(probe) or str(Path(probe).parent) not in beside:
            raise MicrovmError(f"'{probe}' is none of the files that state=offered makes", option="offer")


def _check_paths(config: Mapping[str, Any], backing: Iterable[str], paths: Paths, directories: Iterable[str]) -> None:
    written = {str(use.path) for use in vm_access.files(config) if use.writes}
    allowed = [paths.state, paths.run, *map(Path, directories)]
    store = paths.state_dir / "images"
    for file in backing:
        _check(Path(file), "disks.backing_files", [*allowed, store], paths)
    for option, path in vm_schema.values(VM, config, "path"):
        # The images there are those of all VMs.
        places = allowed if path in written else [*allowed, store]
        if not (option == "rng.src" and path in _DEVICES):
            _check(Path(path), option, places, paths)


def _check(path: Path, option: str, places: Sequence[Path], paths: Paths) -> None:
    """Raise MicrovmError for a path that leads out of these directories, whatever links it takes."""
    leads = path.resolve()
    if not path.is_absolute() or not any(leads.is_relative_to(place.resolve()) for place in places):
        found = f"'{path}'" if path == leads else f"'{path}', which leads to '{leads}',"
        raise MicrovmError(
            f"{found} lies in none of the directories that a VM from another host may name: "
            f"{', '.join(map(str, places))}; allow its directory by 'directories' (the role's vm_migrate_directories) if it "
            "is right",
            option=option,
            vm=paths.name,
        )


def _check_taps(config: Mapping[str, Any], paths: Paths) -> None:
    for other in vm_record.known(paths.state_dir):
        if other == paths.name:
            continue
        record = vm_record.read(Paths.of(other, state_dir=paths.state_dir, run_dir=paths.run.parent))
        for name in sorted(vm_record.taps(record or {}) & _taps(config)):
            raise MicrovmError(f"the TAP {name} is that of VM '{other}' here; a VM has its own", option="nets.tap")


def _taps(config: Mapping[str, Any]) -> set[str]:
    return {net["tap"] for net in config["net"] if "tap" in net}
