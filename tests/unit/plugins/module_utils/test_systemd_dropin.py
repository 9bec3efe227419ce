# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils import command_unit, systemd_dropin
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.systemd_dropin import Restart, Unit
from ansible_collections.microvm.cloud_hypervisor.plugins.module_utils.vm_paths import Paths

PATHS = Paths.of("web", state_dir=Path("/var/lib/microvm"), run_dir=Path("/run/microvm"))


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("plain", '"plain"'),
        ("two words", '"two words"'),
        ("50%", '"50%%"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("line\nbreak", '"line\\nbreak"'),
    ],
)
def test_words_are_quoted(word: str, quoted: str) -> None:
    assert systemd_dropin.quote(word) == quoted


def test_a_dollar_is_doubled_in_commands_alone() -> None:
    assert systemd_dropin.command_line(["/bin/echo", "$HOME"], prefix="+") == '+"/bin/echo" "$$HOME"'
    assert systemd_dropin.quote("$HOME") == '"$HOME"'


def test_a_line_break_cannot_end_a_setting() -> None:
    text = systemd_dropin.render(Unit(PATHS, argv=["/vmm", "x\nUser=root"], user="vm-web"))
    assert [line for line in text.splitlines() if line.startswith("User=")] == ["User=vm-web"]


def test_the_dropin_says_what_the_vm_was_asked_to_be() -> None:
    unit = Unit(
        PATHS,
        argv=["/usr/bin/vmm", "--api-socket", "path=/run/microvm/web/api.sock"],
        user="vm-web",
        groups=["kvm"],
        files=["/srv/a disk"],
        devices=["/dev/vg/web"],
        grace=5,
        boot_timeout=10,
        restart=Restart("always", 3, 60),
        limits={"CPUQuota": "50%"},
    )
    own = '+"/usr/local/bin/microvm" "--state-dir" "/var/lib/microvm" "--run-dir" "/run/microvm"'
    assert systemd_dropin.render(unit).splitlines() == [
        "# Written by microvm.cloud_hypervisor.ch_vm.",
        "[Unit]",
        "Description=microVM web",
        "StartLimitIntervalSec=60",
        "StartLimitBurst=3",
        "",
        "[Service]",
        f'ExecStartPre={own} "prepare" "web"',
        'ExecStart="/usr/bin/vmm" "--api-socket" "path=/run/microvm/web/api.sock"',
        f'ExecStartPost={own} "boot" "web"',
        f'ExecStop={own} "stop" "web" "--grace" "5"',
        f'ExecStopPost={own} "cleanup" "web"',
        "User=vm-web",
        "Group=vm-web",
        "SupplementaryGroups=kvm",
        'ReadWritePaths="/var/lib/microvm/vms/web"',
        'ReadWritePaths="-/run/microvm/web"',
        'ReadWritePaths="/srv/a disk"',
        'DeviceAllow="/dev/vg/web" rw',
        "Restart=always",
        "TimeoutStartSec=70",
        "TimeoutStopSec=65",
        "CPUQuota=50%",
    ]


def test_the_time_for_a_stop_is_read_back() -> None:
    text = systemd_dropin.render(Unit(PATHS, argv=["/vmm"], user="vm-web", grace=7))
    assert systemd_dropin.stop_seconds_of(text) == systemd_dropin.stop_seconds(7)
    assert systemd_dropin.stop_seconds_of("") == 0


def test_a_reload_starts_a_second_vmm_as_the_first_and_moves_the_vm_as_root() -> None:
    argv = ["/usr/bin/vmm", "--api-socket", "path=/run/microvm/web/api.sock.1"]
    assert systemd_dropin.render_handover(PATHS, argv, seconds=780, limits={"MemoryMax": "1"}).splitlines() == [
        "# Written by microvm.cloud_hypervisor.ch_upgrade, for the time of a move.",
        "[Service]",
        'ExecReload="/usr/bin/setsid" "--fork" "/usr/bin/vmm" "--api-socket" "path=/run/microvm/web/api.sock.1"',
        'ExecReload=+"/usr/local/bin/microvm" "--state-dir" "/var/lib/microvm" "--run-dir" "/run/microvm" "handover" "web"',
        "SyslogIdentifier=cloud-hypervisor",
        "NotifyAccess=exec",
        "TimeoutStartSec=780",
        "OOMPolicy=continue",
        "SuccessExitStatus=1 101 SIGABRT SIGBUS SIGFPE SIGILL SIGKILL SIGQUIT SIGSEGV SIGSYS SIGTRAP",
        "MemoryMax=1",
    ]


def test_a_guest_that_is_lost_in_a_move_is_no_good_end_for_systemd() -> None:
    text = systemd_dropin.render_handover(PATHS, ["/vmm"], seconds=1, limits={})
    (good,) = [line.partition("=")[2].split() for line in text.splitlines() if line.startswith("SuccessExitStatus=")]
    assert str(command_unit.LOST) not in good
