# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Cloud Hypervisor's REST API over the unix socket of one VMM.

Facts from the API documents of the supported releases (vmm/src/api/openapi/cloud-hypervisor.yaml, v43.0 to v53.0),
checked by tests/vmm_contract against the binaries of v43.0 to v53.0. An error is a list of causes from v47.0 on and text
before; that there is no VM is a 404 from v53.0 on and a 500 before.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote

from .errors import MicrovmError

try:
    import requests
    import requests_unixsocket
except ImportError as error:
    _MISSING: str | None = str(error)
else:
    _MISSING = None

Json = dict[str, Any]
Action = Literal["boot", "delete", "nmi", "pause", "power-button", "reboot", "resume", "shutdown"]
DeviceKind = Literal["device", "disk", "fs", "generic-vhost-user", "net", "pmem", "user-device", "vdpa", "vsock"]

# struct sockaddr_un holds 108 bytes with the final NUL, unix(7).
MAX_SOCKET_PATH = 107


def require_library() -> None:
    """Raise MicrovmError where the library is missing that the client needs."""
    if _MISSING is not None:
        raise MicrovmError(
            f"the Python library requests-unixsocket cannot be used by {sys.executable} on this host ({_MISSING}); install "
            "it there, from the distribution (python3-requests-unixsocket) or with pip"
        )


class VmmError(MicrovmError):
    """The VMM answered a request with an error.

    ``status`` is the HTTP status; ``causes`` the cause chain, outermost first. Where the VMM answered plain text
    (or nothing), it is the chain's only element (or the chain is empty).
    """

    def __init__(self, call: str, status: int, causes: tuple[str, ...]) -> None:
        super().__init__(f"the VMM refused {call} with HTTP status {status}: {': '.join(causes) or 'no reason given'}")
        self.call = call
        self.status = status
        self.causes = causes


class VmmUnreachable(MicrovmError):
    """No VMM answers at the socket: it is missing, refuses, hangs up, or answers too late or not in HTTP."""


def check_socket_path(path: str, *, option: str | None = None) -> None:
    """Refuse a path that no unix socket can be bound to; ``option`` is the one to name in the MicrovmError."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise MicrovmError(
            f"the path of the socket '{path}' has {length} bytes, but that of a unix socket has at most "
            f"{MAX_SOCKET_PATH}; choose a directory with a shorter path",
            option=option,
        )


def cause_chain(body: str) -> tuple[str, ...]:
    """Read the body of an error answer: a JSON list of strings, outermost first, or plain text."""
    try:
        causes = json.loads(body)
    except ValueError:
        causes = None
    if isinstance(causes, list) and all(isinstance(cause, str) for cause in causes):
        return tuple(causes)
    text = body.strip()
    return (text,) if text else ()


class VmmClient:
    """The API of the VMM that listens at ``socket_path``.

    ``timeout``, in seconds, bounds the connection and each wait for an answer. Every method raises VmmError where the
    VMM refuses, and VmmUnreachable where none answers. Each call has a connection of its own: nothing needs closing,
    and a VMM that was started anew is simply reached.
    """

    def __init__(self, socket_path: str, *, timeout: float = 30.0) -> None:
        """Raise MicrovmError for a path longer than a unix socket's can be."""
        check_socket_path(socket_path)
        self.socket_path = socket_path
        self.timeout = timeout

    def call(self, method: Literal["GET", "PUT"], call: str, body: Mapping[str, Any] | None = None) -> Json | None:
        """Send one request, such as ``("PUT", "vm.resize", {"desired_vcpus": 2})``; return its answer's JSON object.

        The return value is None where the answer has no body, as after a 204.
        """
        url = f"http+unix://{quote(self.socket_path, safe='')}/api/v1/{call}"
        with requests_unixsocket.Session() as session:
            session.trust_env = False  # no proxies, no .netrc
            # The adapter has a timeout of its own, of 60 seconds, for the connection.
            session.mount("http+unix://", requests_unixsocket.UnixAdapter(timeout=self.timeout))
            try:
                answer = session.request(method, url, json=body, timeout=self.timeout)
            except (requests.RequestException, OSError) as error:
                raise VmmUnreachable(
                    f"no VMM answered {call} at '{self.socket_path}' within {self.timeout:g} seconds: {_reason(error)}"
                    if _timed_out(error)
                    else f"no VMM answered {call} at '{self.socket_path}': {_reason(error)}"
                ) from error
        if answer.status_code >= 300:
            raise VmmError(call, answer.status_code, cause_chain(answer.text))
        if not answer.content:
            return None
        try:
            result = answer.json()
        except ValueError:
            result = None
        if not isinstance(result, dict):
            raise VmmError(call, answer.status_code, (f"expected a JSON object, got: {answer.text.strip()}",))
        return result

    def _get(self, call: str) -> Json:
        return self.call("GET", call) or {}

    def ping(self) -> Json:
        """Return what the VMM says of itself: ``version``, ``build_version``, ``pid``, ``features``."""
        return self._get("vmm.ping")

    def vmm_shutdown(self) -> None:
        """Ask the VMM to end; the process may outlive the answer for a moment."""
        self.call("PUT", "vmm.shutdown")

    def info(self) -> Json:
        """Return the VM's ``state`` (Created, Running, Shutdown, Paused, BreakPoint), ``config`` and memory (VmInfo)."""
        info = self._get("vm.info")
        if not (isinstance(info.get("state"), str) and isinstance(info.get("config"), dict)):
            raise MicrovmError(f"the VMM at '{self.socket_path}' answers vm.info without a state and a configuration")
        return info

    def counters(self) -> Json:
        """Return the counters of each device, keyed by its id."""
        devices = self._get("vm.counters").items()
        return {
            name: {counter: value for counter, value in counters.items() if isinstance(value, int | float)}
            for name, counters in devices
            if isinstance(counters, dict)
        }

    def create(self, config: Mapping[str, Any]) -> None:
        """Create the VM from a VmConfig, without booting it."""
        self.call("PUT", "vm.create", config)

    def act(self, action: Action) -> None:
        """Do what takes no argument: ``boot``, ``pause``, ``resume``, ``reboot``, ``power-button`` and so on.

        After ``shutdown`` the VMM keeps the VM's configuration, ``delete`` drops it.
        """
        self.call("PUT", f"vm.{action}")

    def resize(self, *, vcpus: int | None = None, memory: int | None = None, balloon: int | None = None) -> None:
        """Change the number of vCPUs, the memory (bytes) or the balloon (bytes)."""
        wanted = {"desired_vcpus": vcpus, "desired_ram": memory, "desired_balloon": balloon}
        self.call("PUT", "vm.resize", {name: value for name, value in wanted.items() if value is not None})

    def resize_disk(self, device_id: str, size: int) -> None:
        """Change the size (bytes) of a disk; VMMs before v50.0 lack the call and answer 404."""
        self.call("PUT", "vm.resize-disk", {"id": device_id, "desired_size": size})

    def resize_zone(self, zone_id: str, size: int) -> None:
        """Change the memory (bytes) of one zone, of those that VmConfig's MemoryConfig names."""
        self.call("PUT", "vm.resize-zone", {"id": zone_id, "desired_ram": size})

    def add(self, kind: DeviceKind, config: Mapping[str, Any]) -> Json | None:
        """Add a device, given as the API document's DiskConfig, NetConfig and so on.

        Return its ``id`` and ``bdf`` where it was plugged into a running VM, None where it waits for the boot.
        """
        return self.call("PUT", f"vm.add-{kind}", config)

    def remove_device(self, device_id: str) -> None:
        """Take a device away; a running guest has a say in when it goes."""
        self.call("PUT", "vm.remove-device", {"id": device_id})

    def snapshot(self, destination_url: str) -> None:
        """Write the paused VM's state and memory to a directory (``file:///...``)."""
        self.call("PUT", "vm.snapshot", {"destination_url": destination_url})

    def restore(self, source_url: str, *, prefault: bool = False) -> None:
        """Make a VM, paused, from a snapshot of the same VMM version."""
        self.call("PUT", "vm.restore", {"source_url": source_url, "prefault": prefault})

    def receive_migration(self, receiver_url: str) -> None:
        """Wait for another VMM's VM at ``unix:PATH`` or ``tcp:HOST:PORT``; return once it is here.

        Until then the VMM answers nothing else and heeds no SIGTERM.
        """
        self.call("PUT", "vm.receive-migration", {"receiver_url": receiver_url})

    def send_migration(self, destination_url: str, *, local: bool = False) -> None:
        """Hand the VM to the VMM that waits at ``unix:PATH`` or ``tcp:HOST:PORT``; ``local`` shares its memory with it.

        A VMM ends once the VM is gone, and lets it run on where that fails. Up to v52 the call returns when it is
        over, from v53 on when it has begun.
        """
        self.call("PUT", "vm.send-migration", {"destination_url": destination_url, "local": local})


def _causes(error: BaseException | None) -> list[BaseException]:
    """List an exception and what it was made from; requests and urllib3 nest theirs in arguments and ``reason``."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        nested = [part for part in (*error.args, getattr(error, "reason", None)) if isinstance(part, BaseException)]
        error = nested[0] if nested else error.__cause__ or error.__context__
    return found


def _timed_out(error: BaseException) -> bool:
    return any(isinstance(cause, (TimeoutError, requests.Timeout)) for cause in _causes(error))


def _reason(error: BaseException) -> str:
    """Say in the system's own words why there was no answer, where it said something."""
    systems = [cause.strerror for cause in _causes(error) if isinstance(cause, OSError) and cause.strerror]
    return systems[-1] if systems else str(_causes(error)[-1])
