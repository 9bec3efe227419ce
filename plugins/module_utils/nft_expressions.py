# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The parts of nft rules, as JSON of libnftables-json(5). Pure."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

ACCEPT: Json = {"accept": None}
DROP: Json = {"drop": None}


def meta(key: str) -> Json:
    """Return what the kernel knows of a packet, such as ``iifname``."""
    return {"meta": {"key": key}}


def field(protocol: str, name: str) -> Json:
    """Return a field of a packet's header."""
    return {"payload": {"protocol": protocol, "field": name}}


def ct(key: str) -> Json:
    """Return what is known of a packet's connection."""
    return {"ct": {"key": key}}


def concat(*parts: Json) -> Json:
    """Return several values as one key."""
    return {"concat": list(parts)}


def prefix(address: str, length: int) -> Json:
    """Return a network."""
    return {"prefix": {"addr": address, "len": length}}


def is_(left: Json, right: Any) -> Json:
    """Match where ``left`` is ``right``."""
    return {"match": {"op": "==", "left": left, "right": right}}


def is_not(left: Json, right: Any) -> Json:
    """Match where ``left`` is not ``right``."""
    return {"match": {"op": "!=", "left": left, "right": right}}


def among(left: Json, name: str) -> Json:
    """Match where the named set has ``left``. An element that counts, counts then."""
    return is_(left, f"@{name}")


def not_among(left: Json, name: str) -> Json:
    """Match where the named set does not have ``left``."""
    return is_not(left, f"@{name}")


def looked_up(key: Json, name: str) -> Json:
    """Return the value that the named map has for ``key``; a rule ends where it has none."""
    return {"map": {"key": key, "data": f"@{name}"}}


def goto(chain: str) -> Json:
    """Go on in another chain, for good."""
    return {"goto": {"target": chain}}
