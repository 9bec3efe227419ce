# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for VMs with the tiny PVH guest, which prints a banner, echoes, and resets itself when it reads an ``r``."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path

import pvh_guest
import pytest
from vm_host import RUNNER, Host, nothing_left

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import (
    events,
    vm_lifecycle,
    vm_record,
    vsock_notify,
)
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.errors import MicrovmError
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths

BANNER = {"serial": "pvh gu.st"}


def test_a_line_on_the_serial_port(host: Host) -> None:
    asked = host.ensure("web", wait_for=BANNER, check_mode=True)
    assert asked.actions[-1] == "wait for serial 'pvh gu.st'"
    done = host.ensure("web", wait_for=BANNER)
    assert done.actions == asked.actions
    assert done.facts["ready_after"].keys() == {"serial 'pvh gu.st'"}
    again = host.ensure("web", wait_for=BANNER)
    assert (again.changed, again.actions, again.facts["ready_after"]) == (False, (), {})
    by_name = host.ensure("web", state="restarted", by_name=True, grace=0)
    assert by_name.actions[-1] == "wait for serial 'pvh gu.st'"


@pytest.mark.parametrize("mode", ["pty", "socket"])
def test_a_line_where_one_attaches(host: Host, mode: str) -> None:
    if not host.tells_what_was_written(mode):
        with pytest.raises(
            MicrovmError, match=f"option 'wait_for.serial': with serial.mode: {mode} it needs Cloud Hyp"
        ):
            host.ensure("web", wait_for=BANNER, serial={"mode": mode})
        assert nothing_left(host)
        return
    done = host.ensure("web", wait_for=BANNER, serial={"mode": mode})
    assert done.facts["ready_after"].keys() == {"serial 'pvh gu.st'"}
    assert host.ensure("web", wait_for=BANNER, serial={"mode": mode}).actions == (), "it was read, and counts"


def test_what_does_not_come_is_told_with_the_ends_of_the_logs(host: Host) -> None:
    with pytest.raises(MicrovmError) as caught:
        host.ensure("web", wait_for={"serial": "login:", "api": True, "timeout": 1})
    told = str(caught.value)
    assert "option 'wait_for': the VM runs and was not ready within 1 seconds: serial 'login:': it has not come" in told
    assert "on the serial port: pvh guest" in told
    assert "vm booted" in told
    assert "the VMM: it said" in told
    assert host.info("web")["state"] == "running"


def test_an_old_line_does_not_count(host: Host) -> None:
    host.ensure("web", wait_for=BANNER)
    log = host.state_dir / "vms/web/serial.log"
    host.ensure("web", state="stopped", by_name=True, grace=0)
    log.write_text("an old login:")
    with pytest.raises(MicrovmError, match="it has not come"):
        host.ensure("web", wait_for={"serial": "an old login:", "timeout": 1})


def test_a_guest_that_booted_by_itself_is_waited_for_again(host: Host) -> None:
    if not host.tells_what_was_written("socket"):
        pytest.skip("the release does not tell what a guest has written before one attaches")
    serial = {"mode": "socket"}
    done = host.ensure("web", wait_for=BANNER, serial=serial)
    log = events.EventLog(Path(done.facts["event_log"]))
    with socket.socket(socket.AF_UNIX) as guest:
        guest.connect(done.facts["serial_socket"])
        guest.sendall(pvh_guest.RESET)
        seen: list[events.Event] = []
        while events.boots(seen) < 2:
            seen += log.new()
    again = host.ensure("web", wait_for=BANNER, serial=serial)
    assert again.facts["pid"] == done.facts["pid"]
    assert (again.changed, again.actions) == (False, ("wait for serial 'pvh gu.st'",))


def test_a_vmm_that_ends_ends_the_wait(host: Host) -> None:
    errors: list[MicrovmError] = []

    def wait() -> None:
        try:
            host.ensure("web", wait_for={"serial": "login:", "timeout": 600})
        except MicrovmError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    paths = Paths.of("web", state_dir=host.state_dir, run_dir=host.run_dir)
    while not (vm_record.read(paths) or {}).get("booted"):
        pass
    os.kill(json.loads((host.run_dir / "web/vmm.pid").read_text())["pid"], signal.SIGKILL)
    thread.join()
    assert "ended" in str(errors[0])


def test_what_a_guest_reports_over_vsock(host: Host) -> None:
    """The host's side: what the VMM does with a guest's connection is done here by hand."""
    path = vsock_notify.socket_path(host.run_dir / "web/vsock.sock")
    results = []
    thread = threading.Thread(
        target=lambda: results.append(host.ensure("web", vsock={"cid": 77}, wait_for={"notify": True}))
    )
    thread.start()
    while True:
        with socket.socket(socket.AF_UNIX) as guest:
            if guest.connect_ex(str(path)) == 0:
                guest.sendall(b"READY=1\n")
                break
    thread.join()
    assert results[0].facts["ready_after"].keys() == {"notify"}
    assert vsock_notify.credential() in host.info("web")["config"]["platform"]["oem_strings"]
    assert not path.exists()
    assert host.ensure("web", vsock={"cid": 77}, wait_for={"notify": True}).actions == ()


def test_a_report_is_waited_for_again_unless_nobody_could_hear_it(host: Host) -> None:
    options = {"vsock": {"cid": 77}, "wait_for": {"notify": True, "timeout": 1}}
    for _attempt in range(2):
        with pytest.raises(MicrovmError, match="notify: the guest has not reported READY=1"):
            host.ensure("web", **options)
    host.ensure("web", state="stopped", by_name=True)
    # As its unit does.
    vm_lifecycle.ensure({"name": "web"}, state_dir=host.state_dir, run_dir=host.run_dir, runner=RUNNER)
    done = host.ensure("web", **options)
    assert (done.actions, done.facts["ready_after"]) == ((), {})
    assert host.ensure("web", **options).actions == ()
