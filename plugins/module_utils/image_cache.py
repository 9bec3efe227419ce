# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's cache of images: files named by the digests of what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import checksums, download, qemu_img
from .bulk import Outcome
from .errors import MicrovmError
from .files import locked_directory, replacing, staged
from .runner import Runner
from .sizes import parse_size

PARTS = ("disk", "kernel", "initramfs", "firmware")
DEFAULT_SIZE = 20 << 30
DEFAULT_TIMEOUT = 30
_UBUNTU = "https://cloud-images.ubuntu.com/releases/noble/release"
# Base images hold no secrets, and a VM's own user must be able to read one that its overlay is based on.
_MODE = 0o644


@dataclass(frozen=True, slots=True)
class Source:
    """One file of an image: where it is, and its digest or where that is listed, as far as that was given."""

    part: str
    src: str
    checksum: checksums.Checksum

    @property
    def url(self) -> str | None:
        """The URL, or None for a path on the host."""
        return self.src if urlsplit(self.src).scheme in ("http", "https") else None

    @property
    def path(self) -> Path:
        """The path on the host, where there is no URL."""
        return Path(self.src.removeprefix("file://"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for under one name; the disk's size is None where the default, or the image's own if larger, will do."""

    name: str
    sources: tuple[Source, ...]
    size: int | None
    timeout: float


def ubuntu(machine: str) -> dict[str, dict[str, str]]:
    """Return the options of the default image: Ubuntu 24.04's, with its unpacked kernel and initrd."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine)
    if architecture is None:
        raise MicrovmError(f"there is no default image for {machine}; give disk and kernel", option="disk")
    name = f"ubuntu-24.04-server-cloudimg-{architecture}"
    sums, unpacked_sums = f"sha256:{_UBUNTU}/SHA256SUMS", f"sha256:{_UBUNTU}/unpacked/SHA256SUMS"
    return {
        "disk": {"src": f"{_UBUNTU}/{name}.img", "checksum": sums},
        "kernel": {"src": f"{_UBUNTU}/unpacked/{name}-vmlinuz-generic", "checksum": unpacked_sums},
        "initramfs": {"src": f"{_UBUNTU}/unpacked/{name}-initrd-generic", "checksum": unpacked_sums},
    }


def parse(options: Mapping[str, Any], *, machine: str) -> Wanted:
    """Read one image's options. Raises MicrovmError for what could not be fetched or would not be safe to."""
    given = {part: options[part] for part in PARTS if options.get(part) is not None} or ubuntu(machine)
    if "disk" not in given:
        raise MicrovmError("is missing; an image without a disk has nothing for the guest's root", option="disk")
    sources = tuple(_source(part, source) for part, source in given.items())
    size = None if options.get("size") is None else parse_size(options["size"], option="size")
    return Wanted(options["name"], sources, size, options.get("timeout") or DEFAULT_TIMEOUT)


def _source(part: str, options: Mapping[str, Any]) -> Source:
    src, text = options.get("src") or "", options.get("checksum")
    checksum = checksums.Checksum(None, None) if text is None else checksums.parse(text, option=f"{part}.checksum")
    source = Source(part, src, checksum)
    scheme = urlsplit(src).scheme
    if source.url is None and not source.path.is_absolute():
        raise MicrovmError(f"{src!r} is neither an http(s) URL nor an absolute path on the host", option=f"{part}.src")
    if scheme == "http" and text is None:
        raise MicrovmError(
            f"'{src}' comes over plain http, where anyone on the way can change it; give a checksum, or use https",
            option=f"{part}.checksum",
        )
    return source


class Cache:
    """The cache in one directory. Runs at the same time take turns: what one has made, the next finds."""

    def __init__(self, directory: Path, *, runner: Runner, vms: Path, check_mode: bool = False) -> None:
        self.directory = directory
        self.runner = runner
        self.vms = vms
        self.check_mode = check_mode
        self.index: dict[str, Any] = {"images": {}, "urls": {}, "paths": {}, "disks": {}, "files": {}, "earlier": {}}

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
            before = json.dumps(self.index, sort_keys=True)
            try:
                yield
            finally:
                after = json.dumps(self.index, sort_keys=True)
                if after != before and not self.check_mode:
                    with replacing(path, mode=_MODE) as file:
                        file.write(after.encode())

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
        for source in wanted.sources:
            sha256 = self._digest(source, wanted.timeout)
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
        return Outcome(
            changed=bool(actions),
            facts={**facts, "digests": digests},
            before=before or {},
            after=after,
            actions=tuple(actions),
        )

    def _digest(self, source: Source, timeout: float) -> str | None:
        """Return the digest that the source must have, or None where that shows only when it is fetched."""
        if source.checksum.sha256 is not None:
            return source.checksum.sha256
        if source.checksum.listed_at is not None:
            return self._listed(source, source.checksum.listed_at, timeout)
        if source.url is not None:
            known = self.index["urls"].get(source.url)
            return None if known is None else str(known)
        return self._digest_of_path(source)

    def _listed(self, source: Source, place: str, timeout: float) -> str:
        option = f"{source.part}.checksum"
        try:
            if urlsplit(place).scheme in ("http", "https"):
                sums = download.text(place, timeout=timeout)
            else:
                sums = Path(place.removeprefix("file://")).read_text()
        except OSError as error:
            raise MicrovmError(f"'{place}' cannot be read: {error.strerror}", option=option) from error
        except MicrovmError as error:
            error.option = option
            raise
        name = urlsplit(source.src).path.rpartition("/")[2]
        found = checksums.listed(sums, name)
        if found is None:
            raise MicrovmError(f"'{place}' lists no SHA-256 of '{name}'", option=option)
        return found

    def _digest_of_path(self, source: Source) -> str | None:
        try:
            status = source.path.stat()
            identity = [status.st_ino, status.st_size, status.st_mtime_ns]
            known = self.index["paths"].get(str(source.path))
            if known is not None and known[0] == identity:
                return str(known[1])
            digest = _sha256(source.path)
        except FileNotFoundError as error:
            raise MicrovmError(f"'{source.path}' is not there", option=f"{source.part}.src") from error
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
        with self._fetched(source, sha256, wanted.timeout) as (path, digest):
            target = self.directory / f"sha256-{digest}"
            self._place(path, target, keep=source.url is None)
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
                self._resized(self.directory / there["file"], target)
                self._note_disk(sha256, size, target, there["virtual_size"])
            return target, sha256
        actions.append(f"fetched disk from {source.src}")
        if self.check_mode:
            if source.url is None and source.path.is_file():
                virtual_size = self._virtual_size(source.path, self._format(source.path))
            else:
                virtual_size = 0
            return self._target(sha256 or "unknown", virtual_size, wanted), sha256
        with self._fetched(source, sha256, wanted.timeout) as (path, digest):
            target, virtual_size = self._raw(path, digest, wanted, keep=source.url is None)
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

    def _resized(self, source: Path, target: Path) -> None:
        # Behind the image's own size there are only zeros, so either can be the larger one.
        if source == target:
            return
        with staged(target, mode=_MODE) as temporary:
            self.runner.run(["cp", "--reflink=auto", "--sparse=always", str(source), str(temporary)])
            os.truncate(temporary, int(target.stem.rpartition("-")[2]))
            _sync(temporary)

    @contextmanager
    def _fetched(self, source: Source, sha256: str | None, timeout: float) -> Iterator[tuple[Path, str]]:
        """Yield a file with the source's content, verified, and its digest."""
        if source.url is None:
            digest = _sha256(source.path)
            if sha256 not in (None, digest):
                raise self._wrong(source, str(sha256), digest)
            yield source.path, digest
            return
        part = self.directory / f".part-{hashlib.sha256(source.url.encode()).hexdigest()[:16]}"
        resumed = part.exists()
        try:
            download.fetch(source.url, part, timeout=timeout)
            digest = _sha256(part)
            if resumed and sha256 not in (None, digest):
                # What an earlier run had fetched was of another content: once more, from the beginning.
                download.discard(part)
                download.fetch(source.url, part, timeout=timeout)
                digest = _sha256(part)
        except MicrovmError as error:
            error.option = f"{source.part}.src"
            raise
        try:
            if sha256 not in (None, digest):
                raise self._wrong(source, str(sha256), digest)
            yield part, digest
            if sha256 is None:
                self.index["urls"][source.url] = digest
        finally:
            download.discard(part)

    @staticmethod
    def _wrong(source: Source, expected: str, found: str) -> MicrovmError:
        return MicrovmError(
            f"'{source.src}' has the SHA-256 {found}, and {expected} is expected; nothing was kept of it",
            option=f"{source.part}.checksum",
        )

    def _place(self, path: Path, target: Path, *, keep: bool) -> None:
        """Give a fetched file its name in the cache; a source on the host is kept, and copied."""
        with staged(target, mode=_MODE) as temporary:
            if keep:
                self.runner.run(["cp", "--reflink=auto", "--sparse=always", str(path), str(temporary)])
            else:
                path.replace(temporary)
                temporary.chmod(_MODE)
                _sync(temporary)

    def _virtual_size(self, path: Path, format: qemu_img.Format) -> int:
        try:
            return qemu_img.size_of(path, format)
        except ValueError as error:
            raise MicrovmError(str(error), option="disk.src") from error

    def _target(self, digest: str, virtual_size: int, wanted: Wanted) -> Path:
        size = max(virtual_size, DEFAULT_SIZE) if wanted.size is None else wanted.size
        if size < virtual_size:
            raise MicrovmError(
                f"{size} bytes are asked for, and the image has {virtual_size}; a disk can grow and not shrink",
                option="size",
            )
        return self.directory / f"sha256-{digest}-{size}.raw"

    def _raw(self, path: Path, digest: str, wanted: Wanted, *, keep: bool) -> tuple[Path, int]:
        format = self._format(path)
        virtual_size = self._virtual_size(path, format)
        target = self._target(digest, virtual_size, wanted)
        with staged(target, mode=_MODE) as temporary:
            if format == "qcow2":
                qemu_img.convert_to_raw(self.runner, path, format, temporary)
            elif keep:
                self.runner.run(["cp", "--reflink=auto", "--sparse=always", str(path), str(temporary)])
            else:
                path.replace(temporary)
                temporary.chmod(_MODE)
            os.truncate(temporary, int(target.stem.rpartition("-")[2]))
            _sync(temporary)
        return target, virtual_size

    def _format(self, path: Path) -> qemu_img.Format:
        """Return the format of a verified image. Raises MicrovmError for one that reaches for other files."""
        with path.open("rb") as file:
            if file.read(4) != b"QFI\xfb":
                return "raw"
        info = qemu_img.info(self.runner, path, "qcow2")
        for what, other in (("a backing file", info.backing_file), ("an external data file", info.data_file)):
            if other is not None:
                raise MicrovmError(
                    f"the image names {what}, '{other}', which could be any file of the host; flatten it with "
                    "qemu-img convert first",
                    option="disk.src",
                )
        return "qcow2"

    # ---- Removal ----

    def _remove(self, name: str) -> Outcome:
        gone = self.index["images"].get(name)
        if gone is None:
            return Outcome(changed=False)
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
            del self.index["images"][name]
        return Outcome(changed=True, before=gone, after={}, actions=tuple(f"removed {path}" for path in unused))

    def _overlays_of(self, path: str) -> Iterator[Path]:
        for overlay in sorted(self.vms.glob("*/root.qcow2")):
            if qemu_img.info(self.runner, overlay, "qcow2").backing_file == path:
                yield overlay


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


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
