# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM's disks: the root disk, CIDATA, the service disk and data disks, in its directory."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from . import disk_file, disks_record, fat_disk, guest_files, qemu_img, root_disk
from .bulk import Outcome
from .errors import MicrovmError
from .fat32 import Layout
from .fat_disk import Contents
from .guest_files import Manifest
from .names import check_vm_name
from .runner import Runner
from .sizes import parse_size

DATA_FORMATS = ("qcow2", "raw")
_DATA_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,13}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Sources:
    """What the controller sent along: manifests of its files, and a directory with those that are here already."""

    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    contents: Path | None = None


@dataclass(frozen=True, slots=True)
class FatPlan:
    """A FAT32 disk that is to be: where, of what, and how it differs from what is there."""

    kind: Literal["cidata", "service"]
    path: Path
    wanted: Contents
    layout: Layout
    change: fat_disk.Difference | None


def _directory(state_dir: Path, name: str) -> Path:
    return state_dir / "vms" / name


def plan_fat_disks(
    item: Mapping[str, Any], directory: Path, record: Mapping[str, Any], sources: Sources
) -> list[FatPlan]:
    """Return the FAT32 disks that the options ask for, each with its change, None where it is as it should be."""
    wanted: list[tuple[Literal["cidata", "service"], str, Contents]] = []
    if item.get("cidata") is not None:
        wanted.append(("cidata", "CIDATA", guest_files.cidata(item["cidata"])))
    if item.get("service") is not None:
        files = guest_files.service(item["service"], manifests=sources.manifests, contents=sources.contents)
        wanted.append(("service", "SERVICEDISK", files))
    plans = []
    for kind, label, contents in wanted:
        path = directory / f"{kind}.img"
        before = fat_disk.built_from(path, record.get(kind))
        change = fat_disk.difference(before or {}, contents)
        same = before is not None and not (change.added or change.removed or change.changed)
        layout = fat_disk.layout(contents, label=label, option=kind)
        plans.append(FatPlan(kind, path, contents, layout, None if same else change))
    return plans


def missing_contents(item: Mapping[str, Any], *, state_dir: Path, sources: Sources) -> set[str]:
    """Return the digests of what a run would write for this VM and that is still on the controller only.

    A VM whose options are wrong misses nothing: it fails when its turn comes.
    """
    try:
        directory = _directory(state_dir, check_vm_name(item["name"]))
        if item.get("state") == "absent":
            return set()
        plans = plan_fat_disks(item, directory, disks_record.read(directory), sources)
    except MicrovmError:
        return set()
    return {
        content.sha256
        for plan in plans
        if plan.change is not None
        for content in plan.wanted.values()
        if content.source is None
    }


def ensure(
    item: Mapping[str, Any], *, state_dir: Path, runner: Runner, sources: Sources, check_mode: bool = False
) -> Outcome:
    """Build, keep or remove one VM's disks as its options say. Raises MicrovmError; what was there is kept then."""
    name = check_vm_name(item["name"])
    directory = _directory(state_dir, name)
    if item.get("state") == "absent":
        return _remove(directory, check_mode=check_mode)
    record = disks_record.read(directory)
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    actions: list[str] = []
    steps: list[Callable[[], None]] = []

    root = root_disk.plan(item, directory, record, check_mode=check_mode)
    fat = plan_fat_disks(item, directory, record, sources)
    data = [_plan_data(disk, directory) for disk in item.get("data") or ()]
    _refuse_twice([disk.name for disk in data])

    if root.action:
        actions.append(root.action)
        before["root"], after["root"] = root.before, root.size
        steps.append(partial(root_disk.apply, root, runner, record))
    elif root.boot != record.get("root", {}).get("boot"):
        actions.append(f"noted what boots {root.path.name}")
        before["boot"], after["boot"] = record.get("root", {}).get("boot"), root.boot
        steps.append(partial(root_disk.note_boot, root, record))
    for plan in fat:
        if plan.change is not None:
            actions.append(f"built {plan.path.name}")
            before[plan.kind], after[plan.kind] = {}, plan.change.as_dict()
            steps.append(partial(_apply_fat, plan, record))
    for kind in ("cidata", "service"):
        path = directory / f"{kind}.img"
        if item.get(kind) is None and path.exists():
            actions.append(f"removed {path.name}")
            gone = fat_disk.difference(record.get(kind, {}).get("files", {}), {})
            before[kind], after[kind] = {}, gone.as_dict()
            steps.append(partial(_drop_fat, path, kind, record))
    for disk in data:
        # Whoever has a disk open grows it: ch_vm, which is told of its size.
        if disk.before != disk.size and not disk_file.in_use(disk.path):
            actions.append(f"{'made' if disk.before is None else 'grew'} {disk.path.name}")
            before[disk.path.name], after[disk.path.name] = disk.before, disk.size
            steps.append(partial(_apply_data, disk, runner))

    if steps and not check_mode:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for step in steps:
            step()
            disks_record.write(directory, record)
    return Outcome(
        changed=bool(actions),
        facts={
            "disks": _disks(root, fat, data),
            "root_mode": root.mode,
            "root_outdated": root.outdated,
            "boot": root.boot,
            "unused_data": _unused(directory, data),
        },
        before=before,
        after=after,
        actions=tuple(actions),
    )


def _apply_fat(plan: FatPlan, record: dict[str, Any]) -> None:
    record[plan.kind] = fat_disk.write(plan.path, plan.layout, plan.wanted)


def _drop_fat(path: Path, kind: str, record: dict[str, Any]) -> None:
    path.unlink()
    record.pop(kind, None)


# ---- Data disks ----


@dataclass(frozen=True, slots=True)
class _Data:
    name: str
    path: Path
    before: int | None
    size: int


def _plan_data(options: Mapping[str, Any], directory: Path) -> _Data:
    name = options.get("name") or ""
    if not _DATA_NAME.fullmatch(name):
        raise MicrovmError(
            f"{name!r} does not name a data disk: use 1 to 15 of a-z, 0-9 and '-', a letter or digit first and last",
            option="data.name",
        )
    if options.get("size") is None:
        raise MicrovmError(f"is missing for the data disk '{name}'; give one such as 10GiB", option="data.size")
    size = parse_size(options["size"], option="data.size")
    path = directory / f"data-{name}.{options.get('format') or DATA_FORMATS[0]}"
    for other in (directory / f"data-{name}.{suffix}" for suffix in DATA_FORMATS):
        if other != path and other.exists():
            raise MicrovmError(
                f"'{other}' is there, and another format is asked for; its data stay in the format that they are in: ask for that, "
                "or give the new disk another name",
                option="data.format",
            )
    before = disk_file.size_of(path) if path.exists() else None
    if size == 0 or size % 512:
        raise MicrovmError(f"{size} bytes are asked for; a disk is a multiple of 512 bytes", option="data.size")
    if before is not None and size < before:
        raise MicrovmError(
            f"{size} bytes are asked for, and '{path}' has {before}: a disk is never shrunk, since what lies at its end "
            "would be lost",
            option="data.size",
        )
    return _Data(name, path, before, size)


def _refuse_twice(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise MicrovmError(f"the name '{name}' stands twice", option="data")


def _apply_data(disk: _Data, runner: Runner) -> None:
    if disk.before is None:
        with disk_file.new(disk.path) as temporary:
            qemu_img.create(runner, temporary, disk_file.format_of(disk.path), disk.size)
    else:
        disk_file.refuse_in_use(disk.path, option="data.size")
        qemu_img.resize(runner, disk.path, disk_file.format_of(disk.path), disk.size)


def _unused(directory: Path, data: list[_Data]) -> list[str]:
    """Return the data disks that are there and not asked for. They are kept: no one said that they can go."""
    wanted = {disk.path for disk in data}
    there = (path for suffix in DATA_FORMATS for path in directory.glob(f"data-*.{suffix}"))
    return [str(path) for path in sorted(there) if path not in wanted]


# ---- All of them ----


def _disks(root: root_disk.RootDisk, fat: list[FatPlan], data: list[_Data]) -> list[dict[str, Any]]:
    """Return the disks in the order of their attachment, as ch_vm takes them."""
    disks = [_disk("root", root.path, backing_files=root.mode == "overlay")]
    disks += [_disk(plan.kind, plan.path, readonly=True) for plan in fat]
    disks += [{**_disk(f"data-{disk.name}", disk.path), "size": str(disk.size)} for disk in data]
    return disks


def _disk(name: str, path: Path, *, readonly: bool = False, backing_files: bool = False) -> dict[str, Any]:
    return {
        "id": name,
        "path": str(path),
        "image_type": disk_file.format_of(path),
        "readonly": readonly,
        "backing_files": backing_files,
        # VIRTIO_BLK_ID_BYTES: a serial has at most 20 bytes (virtio 1.2, 5.2.6).
        "serial": name,
    }


def _remove(directory: Path, *, check_mode: bool) -> Outcome:
    names = ("root.raw", "root.qcow2", "cidata.img", "service.img", disks_record.NAME)
    # What a run that was killed had begun is hidden, and named after what it was to be.
    left = [path for path in sorted(directory.glob("*")) if path.is_file() and _belongs(path.name, names)]
    for path in left:
        disk_file.refuse_in_use(path, option="state")
    if not check_mode:
        for path in left:
            path.unlink()
        try:
            directory.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
    return Outcome(
        changed=bool(left),
        before={"files": [path.name for path in left]},
        after={"files": []},
        actions=tuple(f"removed {path.name}" for path in left),
    )


def _belongs(file_name: str, names: tuple[str, ...]) -> bool:
    visible = file_name[1:].rpartition(".")[0] if file_name.startswith(".") else file_name
    return visible in names or bool(re.fullmatch(rf"data-[a-z0-9-]+\.({'|'.join(DATA_FORMATS)})", visible))
