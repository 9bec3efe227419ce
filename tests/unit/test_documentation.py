# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is there to be pasted, the README's, the roles', the examples' and the modules', has only what its reader takes."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.microvm.cloud_hypervisor.plugins.plugin_utils import compose, fleet

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("ch_*.py"))
TEMPLATE = re.compile(r"\{\{.*\}\}", re.DOTALL)
# What stands for a template whose value would be of that type.
SOME: Mapping[str, Any] = {"list": [], "dict": {}, "int": 1, "float": 1.0, "bool": True}
# Settings of Ansible's own that look like variables of the role host.
OF_ANSIBLE = {"host_key_checking"}
LEASE = {
    "address": "10.213.0.2",
    "host_address": "10.213.0.1",
    "prefix": 30,
    "subnet": "10.213.0.0/30",
    "mac": "02:63:0a:d5:00:02",
    "tap": "chtap0",
    "cid": 3,
}
DISKS = ("root", "cidata", "service", "data-main")


def module_spec(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the argument spec that a module gives to AnsibleModule."""

    class Taken(Exception):
        """Instead of a run."""

    def take(**arguments: Any) -> None:
        raise Taken(arguments["argument_spec"])

    module = importlib.import_module(f"ansible_collections.microvm.cloud_hypervisor.plugins.modules.{name}")
    monkeypatch.setattr(module, "AnsibleModule", take)
    with pytest.raises(Taken) as taken:
        module.main()
    spec: dict[str, Any] = taken.value.args[0]
    return spec


def filled(value: Any, spec: Mapping[str, Any]) -> Any:
    """Return what an option is given with its templates filled in by something of the option's type."""
    options = spec.get("options")
    if isinstance(value, str) and TEMPLATE.fullmatch(value):
        return SOME.get(spec.get("type", "str"), "x")
    if isinstance(value, list):
        items = [item for item in value if not (options and isinstance(item, str))]
        return [filled(item, {**spec, "type": spec.get("elements")}) for item in items]
    if isinstance(value, dict) and options:
        return {key: filled(item, options.get(key, {})) for key, item in value.items()}
    return value


def check(given: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    result = ArgumentSpecValidator(spec).validate(filled(given, {"type": "dict", "options": spec}))
    assert not result.error_messages, f"{result.error_messages} of {given}"


def role_spec(role: str, entry_point: str = "main") -> dict[str, Any]:
    specs = yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text())
    options: dict[str, Any] = specs["argument_specs"][entry_point]["options"]
    return options


def check_variables(variables: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the variables of the roles, and of each VM the options of the modules that it comes to."""
    known = {name: role_spec(name) for name in ("host", "vm")}
    known["vm"] |= role_spec("vm", "place") | role_spec("vm", "migrate") | {"vm_migrate_address": {}}
    for role, spec in known.items():
        given = {name: value for name, value in variables.items() if name.startswith(f"{role}_")}
        assert given.keys() <= spec.keys()
        check(given, {name: spec[name] for name in given})
    images = variables.get("vm_images") or [{"name": "ubuntu-24.04"}]
    for image in images:
        check(image, module_spec("ch_image", monkeypatch))
    entries = compose.entries(
        [*variables.get("vm_instances", []), *variables.get("vm_fleet", [])], variables.get("vm_defaults", {})
    )
    if entries:
        compose.images(entries, images)
        fleet.demands(entries, images)
    for entry in entries:
        built = {"boot": {"kernel": "/i/vmlinuz"}, "disks": [{"id": name, "path": "/d"} for name in DISKS]}
        check(compose.lease(entry), module_spec("ch_lease", monkeypatch))
        check(compose.disks(entry, {"disk": "/i/disk"}, {}), module_spec("ch_disks", monkeypatch))
        check(compose.nft(entry, LEASE), module_spec("ch_nft", monkeypatch))
        check(compose.vm(entry, LEASE, built), module_spec("ch_vm", monkeypatch))


def _module(key: Any) -> str:
    return str(key).removeprefix("microvm.cloud_hypervisor.")


def variables_in(document: Any) -> Iterator[Mapping[str, Any]]:
    """Find the mappings with variables of the roles, wherever they are: in an inventory, a play, a file of variables."""
    if isinstance(document, dict):
        if any(str(key).startswith(("vm_", "host_")) and key not in OF_ANSIBLE for key in document):
            yield document
            return
        for key, value in document.items():
            if _module(key) not in MODULES:
                yield from variables_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from variables_in(value)


def tasks_in(document: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Find the tasks that call a module of the collection, and what they give it."""
    if isinstance(document, dict):
        for key, value in document.items():
            if _module(key) in MODULES:
                yield _module(key), value or {}
            else:
                yield from tasks_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from tasks_in(value)


def texts() -> Iterator[tuple[str, str]]:
    """Find all YAML that is there to be pasted."""
    for path in sorted(ROOT.glob("examples/**/*.yml")):
        yield str(path.relative_to(ROOT)), path.read_text()
    for path in sorted([ROOT / "README.md", *ROOT.glob("roles/*/README.md"), *ROOT.glob("examples/**/*.md")]):
        for position, block in enumerate(
            re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        ):
            yield f"{path.relative_to(ROOT)}-{position}", block
    for name in MODULES:
        module = importlib.import_module(f"ansible_collections.microvm.cloud_hypervisor.plugins.modules.{name}")
        yield name, module.EXAMPLES


PASTED = dict(texts())


@pytest.mark.parametrize("where", PASTED)
def test_it_can_be_pasted(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    document = yaml.safe_load(PASTED[where])
    for variables in variables_in(document):
        check_variables(variables, monkeypatch)
    for module, options in tasks_in(document):
        check(options, module_spec(module, monkeypatch))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vm_instances: [{name: web, image: ubuntu-24.04, cpus: {count: 2}}]", "cpus.count"),
        ("vm_instances: [{name: web, image: ubuntu-24.04, forwards: [{port: 80, to: 1}]}]", "forwards.to"),
        ("vm_instances: [{name: web, image: ubuntu-24.04, sevice: {}}]", "sevice"),
        ("vm_instances: [{name: web, image: debian}]", "debian"),
        ("vm_batches: 3", "vm_batches"),
        ("vm_images: [{name: mine, source: x}]", "source"),
    ],
)
def test_a_mistake_would_be_seen(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, compose.ComposeError), match=message):
        check_variables(yaml.safe_load(text), monkeypatch)


def test_a_task_with_a_mistake_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    ((module, options),) = tasks_in([{"microvm.cloud_hypervisor.ch_vm": {"name": "web", "graze": "{{ 60 }}"}}])
    with pytest.raises(AssertionError, match="graze"):
        check(options, module_spec(module, monkeypatch))


def test_the_readme_names_all_that_there_is() -> None:
    readme = (ROOT / "README.md").read_text()
    filters = {path.stem for path in (ROOT / "plugins/filter").glob("*.yml")}
    plugins = {
        path.stem for kind in ("connection", "inventory", "lookup") for path in ROOT.glob(f"plugins/{kind}/*.py")
    }
    playbooks = {path.stem for path in ROOT.glob("playbooks/*.yml")}
    roles = {path.name for path in ROOT.glob("roles/*")}
    missing = {name for name in {*MODULES, *filters, *plugins, *playbooks, *roles} if f"`{name}`" not in readme}
    assert not missing


@pytest.mark.parametrize("playbook", sorted(path.stem for path in ROOT.glob("playbooks/*.yml")))
def test_the_playbooks_tell_of_their_variables(playbook: str) -> None:
    text = (ROOT / f"playbooks/{playbook}.yml").read_text()
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    told = set(re.findall(r"-e (\w+)=", head))
    assert told >= set(re.findall(r"\{\{ \(?(\w+) \| default\(", text))
    (row,) = re.findall(rf"^\| `{playbook}` .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row.split("|")[3])) == told


@pytest.mark.parametrize("role", ["host", "vm"])
def test_the_roles_document_their_defaults(role: str) -> None:
    specs = yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text())["argument_specs"]
    defaults = yaml.safe_load((ROOT / f"roles/{role}/defaults/main.yml").read_text())
    documented = {name: option for spec in specs.values() for name, option in spec["options"].items()}
    assert {name for name in defaults if name not in documented} == set()
    for spec in specs.values():
        for name, option in spec["options"].items():
            if "default" in option and not TEMPLATE.search(str(defaults[name])):
                assert option["default"] == defaults[name], name
