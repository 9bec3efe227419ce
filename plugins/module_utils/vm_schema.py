# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an option of a VM is in the VmConfig, as data; and what follows from it. Pure.

From one table of properties follow a module's argument spec and documentation, the VmConfig that the VMM is told, what
a release lacks of it, and what of the VMM's own answer is a default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .addressing import parse_mac
from .errors import MicrovmError
from .sizes import parse_size

Version = tuple[int, int]
OLDEST: Version = (43, 0)

Kind = Literal["bool", "int", "str", "path", "size", "mac", "choice", "dict"]
_TYPES: Mapping[Kind, str] = {"size": "str", "mac": "str", "choice": "str"}
FIRST_RELEASE = "0.1.0"


@dataclass(frozen=True, slots=True)
class Property:
    """One option and the property of the VmConfig that it sets.

    ``option`` is None for a property that follows from another option, ``key`` is None for an option that the VMM is not
    told. ``since`` and ``until`` are the first and the last release that has it; before the first of ``wider`` a number is at
    most the second. ``default`` is the value that the VMM
    takes where nothing is said. ``own`` marks what the VMM fills in by itself, so that it counts only where it is asked
    for. ``presence`` marks what counts for something where it is there and empty. ``implied`` marks what a release without it
    does of itself. ``aliases`` are other names for it in a VMM's answer. ``encode`` makes the property's value of an option
    whose suboptions are not those of the property, and ``covers`` names the latter.
    """

    option: str | None
    key: str | None
    kind: Kind
    description: str = ""
    many: bool = False
    fields: tuple[Property, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    required: bool = False
    least: int = 0
    most: int = 2**63 - 1
    since: Version = OLDEST
    until: Version | None = None
    wider: tuple[Version, int] | None = None
    default: Any = None
    own: bool = False
    presence: bool = False
    implied: bool = False
    aliases: tuple[str, ...] = ()
    encode: Callable[[Mapping[str, Any], str], Any] | None = None
    covers: tuple[str, ...] = ()
    added: str = "0.2.0"


# ---- What a module says of itself ----


def argument_spec(properties: Sequence[Property]) -> dict[str, Any]:
    """Return the argument spec of the options."""
    spec: dict[str, Any] = {}
    for prop in properties:
        if prop.option is None:
            continue
        entry = _shape(prop)
        if prop.fields:
            entry["options"] = argument_spec(prop.fields)
        spec[prop.option] = entry
    return spec


def documentation(properties: Sequence[Property], *, added: str = FIRST_RELEASE) -> dict[str, Any]:
    """Return the options' documentation; ``added`` is the release of the collection that brought what they are part of."""
    result: dict[str, Any] = {}
    for prop in properties:
        if prop.option is None:
            continue
        told = prop.default is not False or "V(false)" in prop.description
        description = [prop.description if told else f"{prop.description} The default is V(false)."]
        if prop.since > OLDEST:
            description.append(f"Needs Cloud Hypervisor {spelled(prop.since)} or later.")
        if prop.wider is not None:
            description.append(f"Before Cloud Hypervisor {spelled(prop.wider[0])} at most V({prop.wider[1]}).")
        if prop.until is not None:
            description.append(f"Cloud Hypervisor has had it up to {spelled(prop.until)}.")
        entry: dict[str, Any] = {"description": description, **_shape(prop)}
        if prop.added != added:
            entry["version_added"] = prop.added
        if prop.fields:
            entry["suboptions"] = documentation(prop.fields, added=prop.added)
        result[prop.option] = entry
    return result


def _shape(prop: Property) -> dict[str, Any]:
    kind = _TYPES.get(prop.kind, prop.kind)
    shape: dict[str, Any] = {"type": "list", "elements": kind} if prop.many else {"type": kind}
    if prop.choices:
        shape["choices"] = list(prop.choices)
    if prop.required:
        shape["required"] = True
    return shape


def spelled(version: Version) -> str:
    """Return a version as people write it, such as ``v53.0``."""
    return f"v{version[0]}.{version[1]}"


# ---- From options to the VmConfig ----


def encoded(properties: Sequence[Property], options: Mapping[str, Any], *, at: str = "") -> dict[str, Any]:
    """Return the part of the VmConfig that the options ask for; ``at`` is the option that they are suboptions of.

    Raises MicrovmError, naming the option, for what is missing or no property could hold.
    """
    config: dict[str, Any] = {}
    for prop in properties:
        if prop.option is None or prop.key is None:
            continue
        name = f"{at}{prop.option}"
        value = options.get(prop.option)
        if value is None:
            if prop.required:
                raise MicrovmError("is missing", option=name)
            continue
        if prop.many:
            config[prop.key] = [_value(prop, part, name) for part in value]
        else:
            config[prop.key] = _value(prop, value, name)
    return config


def _value(prop: Property, value: Any, name: str) -> Any:
    if prop.encode is not None:
        return prop.encode(value, name)
    match prop.kind:
        case "dict":
            return encoded(prop.fields, value, at=f"{name}.")
        case "size":
            return parse_size(value, option=name)
        case "mac":
            return parse_mac(value)
        case "choice":
            if value not in prop.choices:
                raise MicrovmError(f"{value!r} is none of {', '.join(prop.choices)}", option=name)
            return prop.choices[value]
        case "int":
            if not prop.least <= value <= prop.most:
                raise MicrovmError(f"{value} is not between {prop.least} and {prop.most}", option=name)
    return value


# ---- What a release lacks ----


def adapted(
    properties: Sequence[Property], config: Mapping[str, Any], version: Version, *, at: str = ""
) -> dict[str, Any]:
    """Return a VmConfig for a release, without what it lacks and does of itself.

    Raises MicrovmError, naming the option and the release that brings it, for what it lacks and cannot do.
    """
    known = {prop.key: prop for prop in properties if prop.key is not None}
    result = {}
    for key, value in config.items():
        prop = known.get(key)
        if prop is None:
            result[key] = value
            continue
        name = f"{at}{prop.option or key}"
        gone = prop.until is not None and version > prop.until
        if version < prop.since or gone:
            if prop.implied or value == prop.default or (value in ([], {}, None) and not prop.presence):
                continue
            needed = f"{spelled(prop.since)} or later" if not gone else f"{spelled(prop.until or OLDEST)} or earlier"
            raise MicrovmError(f"needs Cloud Hypervisor {needed}, and this is {spelled(version)}", option=name)
        if prop.wider is not None:
            _refuse_too_much(value if prop.many else [value], prop.wider, version, name)
        if prop.fields and prop.encode is None:
            parts = [adapted(prop.fields, part, version, at=f"{name}.") for part in (value if prop.many else [value])]
            result[key] = parts if prop.many else parts[0]
        else:
            result[key] = value
    return result


def _refuse_too_much(values: Sequence[int], wider: tuple[Version, int], version: Version, name: str) -> None:
    since, most = wider
    for value in values:
        if version < since and value > most:
            raise MicrovmError(
                f"{value} needs Cloud Hypervisor {spelled(since)} or later, and this is {spelled(version)}, which has at most "
                f"{most}",
                option=name,
            )


# ---- What is a default ----


def normalised(properties: Sequence[Property], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a VmConfig without what nobody asked for: defaults, nulls, empty lists, and properties that are unknown."""
    names = {name: prop for prop in properties if prop.key is not None for name in (prop.key, *prop.aliases)}
    result: dict[str, Any] = {}
    for name, value in config.items():
        prop = names.get(name)
        if prop is None or prop.key is None or value is None or value == prop.default:
            continue
        if prop.fields and prop.encode is None:
            parts = [normalised(prop.fields, part) for part in (value if prop.many else [value])]
            value = parts if prop.many else parts[0]
        elif isinstance(value, Mapping):
            value = _without_nulls(value)
        if value not in ({}, []) or prop.presence:
            result[prop.key] = value
    return result


def _without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(part) if isinstance(part, Mapping) else part
        for key, part in value.items()
        if part is not None
    }


def values(
    properties: Sequence[Property], config: Mapping[str, Any], kind: Kind, *, at: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield what a VmConfig holds of a kind, such as the paths in it, each with the option that sets it."""
    for prop in properties:
        for key in () if prop.key is None else (prop.key, *prop.aliases):
            value = config.get(key)
            if value is None:
                continue
            name = f"{at}{prop.option or key}"
            for part in value if prop.many else [value]:
                if prop.kind == kind:
                    yield name, part
                elif isinstance(part, Mapping):
                    yield from values(prop.fields, part, kind, at=f"{name}.")


def paths(properties: Sequence[Property], *, at: str = "") -> set[str]:
    """Return the properties' places in the VmConfig, such as ``disks.rate_limiter_config.ops.size``."""
    found: set[str] = set()
    for prop in properties:
        for key in () if prop.key is None else (prop.key, *prop.aliases):
            found |= {f"{at}{key}", *(f"{at}{key}.{part}" for part in prop.covers)}
            if prop.encode is None:
                found |= paths(prop.fields, at=f"{at}{key}.")
    return found
