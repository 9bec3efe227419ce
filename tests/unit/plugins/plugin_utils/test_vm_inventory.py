# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils import vm_inventory
from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils.ssh_proxy import HostConnection

CONNECTION = HostConnection.of("h1", {})


def vm(**labels: Any) -> dict[str, Any]:
    return {"state": "running", "labels": labels}


def names(status: dict[str, Any], **options: Any) -> list[str]:
    given = {"naming": "short", **options}
    return [guest.inventory_name for guest in vm_inventory.guests(status, **given)]


STATUS: dict[str, Any] = {
    "hosts": {
        "h2": {"vms": {"web": vm()}},
        "h1": {"vms": {"web": vm(), "db": vm()}},
        "h3": {"msg": "no route to host\n"},
        "h4": {"vms": {}},
    }
}


def test_only_what_would_collide_is_named_by_its_host() -> None:
    assert names(STATUS) == ["db", "h1-web", "h2-web"]
    assert names(STATUS, taken={"db"}) == ["h1-db", "h1-web", "h2-web"]
    assert names(STATUS, naming="qualified") == ["h1-db", "h1-web", "h2-web"]


def test_a_host_without_vms_has_answered() -> None:
    assert list(vm_inventory.unanswered(STATUS)) == [("h3", "no route to host")]


def test_variables() -> None:
    facts = vm(address="10.213.0.2", mac="02:63:0a:d5:00:02", image="small", tags=["blue"])
    (guest,) = vm_inventory.guests({"hosts": {"h1": {"vms": {"web": facts}}}}, naming="short")
    values = vm_inventory.variables(guest, CONNECTION, jump=True)
    assert values["ansible_host"] == values["microvm_address"] == "10.213.0.2"
    assert "ProxyCommand=" in values["ansible_ssh_common_args"]
    assert (values["microvm_name"], values["microvm_host"], values["microvm_state"]) == ("web", "h1", "running")
    assert (values["microvm_mac"], values["microvm_image"]) == ("02:63:0a:d5:00:02", "small")
    assert values["microvm_tags"] == ["blue"]
    assert vm_inventory.groups(guest) == ["state_running", "host_h1", "image_small", "tag_blue"]


def test_a_vm_that_ch_vm_was_given_alone_has_no_address() -> None:
    (guest,) = vm_inventory.guests({"hosts": {"h1": {"vms": {"web": {"state": "stopped"}}}}}, naming="short")
    values = vm_inventory.variables(guest, CONNECTION, jump=True)
    assert "ansible_host" not in values
    assert values["microvm_address"] is None
    assert vm_inventory.groups(guest) == ["state_stopped", "host_h1"]


def test_a_vm_whose_vmm_does_not_answer_is_there() -> None:
    status = {"hosts": {"h1": {"vms": {"web": {"failed": True, "msg": "no answer", "changed": False}}}}}
    (guest,) = vm_inventory.guests(status, naming="short")
    assert guest.state == "failed"


def test_an_address_of_ipv6_alone_is_taken() -> None:
    (guest,) = vm_inventory.guests({"hosts": {"h1": {"vms": {"web": vm(address6="fd00::2")}}}}, naming="short")
    assert vm_inventory.variables(guest, CONNECTION, jump=True)["ansible_host"] == "fd00::2"


def test_no_vm_is_localhost() -> None:
    assert names({"hosts": {"h1": {"vms": {"localhost": vm()}}}}) == ["h1-localhost"]


def test_what_a_host_says_is_no_option_of_ssh() -> None:
    facts = vm(address="-oProxyCommand=touch /tmp/x")
    (guest,) = vm_inventory.guests({"hosts": {"h1": {"vms": {"web": facts}}}}, naming="short")
    assert "ansible_host" not in vm_inventory.variables(guest, CONNECTION, jump=True)
