# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's cache of images: files named by the digests of what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from . import disk_file, download, image_format, image_source, qemu_img
from .bulk import Outcome
from .errors import MicrovmError
from .files import fsync_file, locked_directory, sha256_of, staged, write
from .image_request import PARTS, Source, Wanted, parse
from .runner import Runner

DEFAULT_SIZE = 20 << 30
# Base images hold no secrets, and a VM's own user must be able to read one that its overlay is based on.
_MODE = 0o644


class Cache:
    """The cache in one directory. Runs at the same time take turns: what one has made, the next finds."""

    def __init__(self, directory: Path, *, runner: Runner, vms: Path, check_mode: bool = False) -> None:
        self.directory = directory
        self.runner = runner
        self.vms = vms
        self.check_mode = check_mode
        kinds = ("images", "urls", "listed", "paths", "disks", "files", "earlier")
        self.index: dict[str, Any] = {kind: {} for kind in kinds}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cache for this run; read its index, and write it where it has changed."""
        path = self.directory / "index.json"
        # Check mode writes nothing, and need not wait for another run's download.
        with nullcontext() if self.check_mode else locked_directory(self.directory, make=True):
            if path.exists():
                try:
                    self.index |= json.loads(path.read_bytes())
                except ValueError as error:
                    raise MicrovmError(
                        f"'{path}' is not readable: {error}; remove it, and images are looked up anew"
                    ) from error
            if not self.check_mode:
                self._sweep()
            before = json.dumps(self.index, sort_keys=True)
            try:
                yield
            finally:
                after = json.dumps(self.index, sort_keys=True)
                if after != before and not self.check_mode:
                    write(path, after.encode(), mode=_MODE)

    def _sweep(self) -> None:
        """Remove what a run that was killed had begun to make; no other run makes anything now."""
        for path in self.directory.glob(".sha256-*"):
            path.unlink()

    # ---- One image ----

    def ensure(self, options: Mapping[str, Any]) -> Outcome:
        """Bring one image into the cache, or remove it. Raises MicrovmError; the cache is as it was then."""
        if options.get("state") == "absent":
            return self._remove(options["name"])
        wanted = parse(options, machine=platform.machine())
        before = self.index["images"].get(wanted.name)
        facts: dict[str, Any] = dict.fromkeys(PARTS)
        digests: dict[str, str | None] = {}
        actions: list[str] = []
        stale: list[str] = []
        for source in wanted.sources:
            sha256 = self._digest(source, wanted, stale)
            if source.part == "disk":
                path, sha256 = self._disk(source, sha256, wanted, actions)
            else:
                path, sha256 = self._file(source, sha256, wanted, actions)
            facts[source.part], digests[source.part] = str(path), sha256
        after = {part: facts[part] for part in PARTS if facts[part] is not None}
        if not self.check_mode:
            self.index["images"][wanted.name] = after
            # VMs may have what the image was before, so that it goes only with the image.
            earlier = {*self.index["earlier"].get(wanted.name, []), *(before or {}).values()} - set(after.values())
            self.index["earlier"][wanted.name] = sorted(earlier)
            self._discard_downloads(wanted.name)
        return Outcome(
            changed=bool(actions),
            facts={**facts, "digests": digests, "stale": stale},
            before=before or {},
            after=after,
            actions=tuple(actions),
        )

    def _digest(self, source: Source, wanted: Wanted, stale: list[str]) -> str | None:
        """Return the digest by which the source is found in the cache, or None where that shows only when it is fetched."""
        if source.checksum is not None:
            if source.checksum.listed_at is not None:
                return self._listed(source, source.checksum.listed_at, wanted, stale)
            return source.checksum.sha256
        if source.url is not None:
            known = self.index["urls"].get(source.url)
            return None if known is None else str(known)
        return self._digest_of_path(source)

    def _listed(self, source: Source, place: str, wanted: Wanted, stale: list[str]) -> str:
        """Return the digest that a list has, or where nobody answers and that will do, had the last time."""
        of = f"{place} {source.src}"
        try:
            digest = image_source.listed(source, place, timeout=wanted.timeout)
        except download.Unreachable as error:
            known = self.index["listed"].get(of)
            if known is None:
                raise
            if not wanted.offline:
                error.message += "; with 'offline', the digest that was listed the last time would count"
                raise
            stale.append(f"{source.part}: {error.message}; the digest that was listed the last time, {known}, counts")
            return str(known)
        self.index["listed"][of] = digest
        return digest

    def _digest_of_path(self, source: Source) -> str | None:
        try:
            status = source.path.stat()
            identity = [status.st_ino, status.st_size, status.st_mtime_ns]
            known = self.index["paths"].get(str(source.path))
            if known is not None and known[0] == identity:
                return str(known[1])
            digest = sha256_of(source.path)
        except FileNotFoundError as error:
            raise MicrovmError(
                f"'{source.path}' is not there, on the host; copy it there first, or give a URL",
                option=f"{source.part}.src",
            ) from error
        except OSError as error:
            raise MicrovmError(
                f"'{source.path}' cannot be read: {error.strerror}", option=f"{source.part}.src"
            ) from error
        self.index["paths"][str(source.path)] = [identity, digest]
        return digest

    def _file(self, source: Source, sha256: str | None, wanted: Wanted, actions: list[str]) -> tuple[Path, str | None]:
        if sha256 is not None and (path := self.directory / f"sha256-{sha256}").exists():
            if path.stat().st_size == self.index["files"].get(path.name):
                return path, sha256
            actions.append(f"found {path.name} with {path.stat().st_size} bytes, which are not its own")
        actions.append(f"fetched {source.part} from {source.src}")
        if self.check_mode:
            return self.directory / f"sha256-{sha256 or 'unknown'}", sha256
        with self._fetched(source, sha256, wanted) as (path, digest):
            target = self.directory / f"sha256-{digest}"
            with staged(target, mode=_MODE) as temporary:
                self._take(path, temporary, keep=source.url is None)
                fsync_file(temporary)
        self.index["files"][target.name] = target.stat().st_size
        return target, digest

    def _disk(self, source: Source, sha256: str | None, wanted: Wanted, actions: list[str]) -> tuple[Path, str | None]:
        """Return the raw disk of the wanted size, made from the source once."""
        size = "default" if wanted.size is None else str(wanted.size)
        known = self.index["disks"].get(f"{sha256}:{size}")
        # The size is checked, since that is cheap: it shows an image that was cut short by hand or by a full disk.
        if known is not None and (path := self.directory / known["file"]).exists():
            if path.stat().st_size == known["size"]:
                return path, sha256
            actions.append(f"found {path.name} with {path.stat().st_size} instead of {known['size']} bytes")
        if sha256 is not None and (there := self._other_size(sha256)) is not None:
            target = self._target(sha256, there["virtual_size"], wanted)
            actions.append(f"made {target.name} from {there['file']}")
            if not self.check_mode:
                self._resized(self.directory / there["file"], target, there["virtual_size"])
                self._note_disk(sha256, size, target, there["virtual_size"])
            return target, sha256
        actions.append(f"fetched disk from {source.src}")
        if self.check_mode:
            # How large a disk is shows once it is here, and decompressed.
            known_here = source.url is None and image_format.compression(source.path) is None
            virtual_size = self._format(source, source.path)[1] if known_here else 0
            return self._target(sha256 or "unknown", virtual_size, wanted), sha256
        with self._fetched(source, sha256, wanted) as (path, digest), self._plain(source, path) as plain:
            target, virtual_size = self._raw(source, plain, digest, wanted)
        self._note_disk(digest, size, target, virtual_size)
        return target, digest

    def _note_disk(self, digest: str, size: str, target: Path, virtual_size: int) -> None:
        self.index["disks"][f"{digest}:{size}"] = {
            "file": target.name,
            "size": target.stat().st_size,
            "virtual_size": virtual_size,
        }

    def _other_size(self, digest: str) -> dict[str, Any] | None:
        """Return an intact raw disk of the same image, of which one of another size can be made."""
        for key, disk in self.index["disks"].items():
            path = self.directory / disk["file"]
            if not key.startswith(f"{digest}:") or "virtual_size" not in disk:
                continue
            if path.exists() and path.stat().st_size == disk["size"]:
                return dict(disk)
        return None

    def _resized(self, source: Path, target: Path, virtual_size: int) -> None:
        if source == target:
            return
        with staged(target, mode=_MODE) as temporary:
            disk_file.copy(self.runner, source, temporary)
            # Behind the image's own size there are only zeros, so the one that is there can be the larger.
            os.truncate(temporary, virtual_size)
            self._grow(temporary, target)

    def _grow(self, temporary: Path, target: Path) -> None:
        qemu_img.resize(self.runner, temporary, "raw", int(target.stem.rpartition("-")[2]))
        fsync_file(temporary)

    @contextmanager
    def _fetched(self, source: Source, sha256: str | None, wanted: Wanted) -> Iterator[tuple[Path, str]]:
        """Yield a file with the source's content, verified, and its digest."""
        # A digest that was only seen earlier finds a file in the cache, and does not bind the server.
        expected = None if source.checksum is None else sha256
        if source.url is None:
            yield source.path, image_source.verified(source, source.path, expected)
            return
        part = self.directory / f"{_download_prefix(wanted.name)}{_short(source.url)}"
        digest = image_source.download_verified(source, part, expected, timeout=wanted.timeout)
        try:
            yield part, digest
            if source.checksum is None:
                self.index["urls"][source.url] = digest
        finally:
            download.discard(part)

    def _discard_downloads(self, name: str) -> bool:
        """Remove what downloads for this image have left that were never gone on with; return whether there was any."""
        left = list(self.directory.glob(f"{_download_prefix(name)}*"))
        if not self.check_mode:
            for path in left:
                path.unlink()
        return bool(left)

    def _take(self, path: Path, temporary: Path, *, keep: bool) -> None:
        """Bring a verified file to where it is staged; a source on the host is kept, and copied."""
        if keep:
            disk_file.copy(self.runner, path, temporary)
        else:
            path.replace(temporary)
            temporary.chmod(_MODE)

    def _target(self, digest: str, virtual_size: int, wanted: Wanted) -> Path:
        size = max(virtual_size, DEFAULT_SIZE) if wanted.size is None else wanted.size
        if size < virtual_size:
            raise MicrovmError(
                f"{size} bytes are asked for, and the image has {virtual_size}; a disk can grow and not shrink",
                option="size",
            )
        return self.directory / f"sha256-{digest}-{size}.raw"

    @contextmanager
    def _plain(self, source: Source, path: Path) -> Iterator[Path]:
        """Yield the disk, decompressed where it is compressed."""
        kind = image_format.compression(path)
        if kind is None:
            yield path
            return
        descriptor, name = tempfile.mkstemp(prefix=".sha256-", dir=self.directory)
        os.close(descriptor)
        try:
            image_format.decompress(self.runner, path, kind, Path(name), name=source.src)
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _raw(self, source: Source, path: Path, digest: str, wanted: Wanted) -> tuple[Path, int]:
        format, virtual_size = self._format(source, path)
        target = self._target(digest, virtual_size, wanted)
        with staged(target, mode=_MODE) as temporary:
            if format == "qcow2":
                qemu_img.convert_to_raw(self.runner, path, format, temporary)
            else:
                self._take(path, temporary, keep=path == source.path)
            self._grow(temporary, target)
        return target, virtual_size

    @staticmethod
    def _format(source: Source, path: Path) -> tuple[qemu_img.Format, int]:
        format = image_format.recognise(path, name=source.src)
        return format, qemu_img.size_of(path, format)

    # ---- Removal ----

    def _remove(self, name: str) -> Outcome:
        gone = self.index["images"].get(name)
        if gone is None:
            left = self._discard_downloads(name)
            return Outcome(changed=left, actions=("removed what a broken download had left",) if left else ())
        others = {path for image, parts in self.index["images"].items() if image != name for path in parts.values()}
        others |= {path for image, paths in self.index["earlier"].items() if image != name for path in paths}
        unused = sorted({*gone.values(), *self.index["earlier"].get(name, [])} - others)
        for path in unused:
            for overlay in self._overlays_of(path):
                raise MicrovmError(
                    f"'{path}' cannot go: the root disk '{overlay}' is an overlay of it; remove that VM's disks first",
                    option="state",
                )
        if not self.check_mode:
            for path in unused:
                Path(path).unlink(missing_ok=True)
            names = {Path(path).name for path in unused}
            self.index["disks"] = {key: disk for key, disk in self.index["disks"].items() if disk["file"] not in names}
            self.index["files"] = {file: size for file, size in self.index["files"].items() if file not in names}
            self.index["earlier"].pop(name, None)
            self._discard_downloads(name)
            del self.index["images"][name]
        return Outcome(changed=True, before=gone, after={}, actions=tuple(f"removed {path}" for path in unused))

    def _overlays_of(self, path: str) -> Iterator[Path]:
        for overlay in sorted(self.vms.glob("*/root.qcow2")):
            if qemu_img.backing_file(overlay) == Path(path):
                yield overlay


def _download_prefix(name: str) -> str:
    return f".part-{_short(name)}-"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ensure(
    items: Iterable[Mapping[str, Any]], *, state_dir: Path, runner: Runner, check_mode: bool = False
) -> dict[str, Outcome | MicrovmError]:
    """Bring each image to what its options say; return the outcomes by the images' names."""
    cache = Cache(state_dir / "images", runner=runner, vms=state_dir / "vms", check_mode=check_mode)
    outcomes: dict[str, Outcome | MicrovmError] = {}
    with cache.locked():
        for item in items:
            try:
                outcomes[item["name"]] = cache.ensure(item)
            except MicrovmError as error:
                error.message = f"image '{item['name']}': {error.message}"
                outcomes[item["name"]] = error
    return outcomes
