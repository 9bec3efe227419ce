# Copyright (c) 2026, The microvm.cloud_hypervisor developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rates as people write them, and the token buckets that the VMM keeps them with. Pure.

Facts from Cloud Hypervisor's API document, schemas RateLimiterConfig and TokenBucket: a bucket holds ``size`` tokens, which
flow back within ``refill_time`` milliseconds; ``one_time_burst`` tokens more are there at the beginning, once. A limiter
counts bytes in the bucket ``bandwidth`` and requests in ``ops``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import MicrovmError
from .sizes import parse_size
from .vm_schema import Property

_SECOND = 1000

_FIELDS = (
    Property(
        "bandwidth", "bandwidth", "size", "How many bytes each second, in both directions together, such as V(100MiB)."
    ),
    Property("bandwidth_burst", "bandwidth_burst", "size", "How many bytes more it may once, at the beginning."),
    Property("ops", "ops", "int", "How many requests, or packets, each second.", least=1),
    Property("ops_burst", "ops_burst", "int", "How many more it may once, at the beginning."),
    Property(
        "interval",
        "interval",
        "int",
        "For how many milliseconds what is not used is saved up, and can be used at once. The default is V(1000).",
        least=1,
    ),
)


def _limiter(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    interval = _SECOND if options.get("interval") is None else options["interval"]
    if interval < 1:
        raise MicrovmError(f"{interval} is no number of milliseconds", option=f"{name}.interval")
    limiter = {}
    for what in ("bandwidth", "ops"):
        if options.get(what) is None:
            if options.get(f"{what}_burst") is not None:
                raise MicrovmError(f"a burst goes beyond a rate; give {what} as well", option=f"{name}.{what}_burst")
            continue
        tokens = parse_size(options[what], option=f"{name}.{what}") * interval // _SECOND
        if tokens < 1:
            raise MicrovmError(
                f"{options[what]} each second is nothing in {interval} milliseconds", option=f"{name}.{what}"
            )
        bucket = {"size": tokens, "refill_time": interval}
        if options.get(f"{what}_burst") is not None:
            bucket["one_time_burst"] = parse_size(options[f"{what}_burst"], option=f"{name}.{what}_burst")
        limiter[what] = bucket
    if not limiter:
        raise MicrovmError("give bandwidth, ops or both", option=name)
    return limiter


RATE_LIMIT = Property(
    "rate_limit",
    "rate_limiter_config",
    "dict",
    "How fast it may be.",
    fields=_FIELDS,
    encode=_limiter,
    covers=tuple(
        f"{bucket}{part}"
        for bucket in ("bandwidth", "ops")
        for part in ("", ".size", ".one_time_burst", ".refill_time")
    ),
)
