"""What users give, checked where it comes in and again where it is kept. Pure."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping
from typing import Any

from raycache.core.paths import parse_uri
from raycache.core.retention import Retention
from raycache.errors import InvalidInput

REFRESH_EVERY_MIN_S = 1.0
"""Shortest refresh interval of a dataset."""
WRITE_TYPES = ("cache", "through", "async")
"""When the source gets what is written: never, before a file is closed, soon after."""


def check_refresh_every(every_s: float) -> float:
    """A refresh interval in seconds, 0 for never. Raises InvalidInput for one below a second, or no number."""
    is_number = isinstance(every_s, int | float) and not isinstance(every_s, bool)
    if not is_number or not math.isfinite(every_s) or (every_s != 0 and every_s < REFRESH_EVERY_MIN_S):
        raise InvalidInput(
            f"refresh every {every_s!r} s: give a number of seconds, {REFRESH_EVERY_MIN_S:g} or more, or 0 for never"
        )
    return float(every_s)


def check_write_type(write_type: str) -> None:
    """Raises InvalidInput for a write type that is none."""
    if write_type not in WRITE_TYPES:
        raise InvalidInput(f"write type {write_type!r}; choose one of {', '.join(WRITE_TYPES)}")


def check_change(change: int, newest: int) -> int:
    """A change number to look back to. Raises InvalidInput for one that is none, or that has not happened yet."""
    if isinstance(change, bool) or not isinstance(change, int) or change < 0:
        raise InvalidInput(f"snapshot {change!r}: give a change number, as in raycache.snapshot().change")
    if change > newest:
        raise InvalidInput(f"snapshot {change}: the newest change of this cache is {newest}; it is of another cache")
    return change


def check_mounts(about: Any) -> dict[str, str]:
    """Mount point -> source URI of a job's ``{"mounts": {"/data": "s3://bucket/train"}}``, both in their usual form.

    Raises InvalidInput.
    """
    mounts = about.get("mounts") if isinstance(about, Mapping) and set(about) <= {"mounts"} else None
    if not isinstance(mounts, Mapping):
        raise InvalidInput(f"raycache={about!r}: write {{'mounts': {{'/data': 's3://bucket/train'}}}}")
    found: dict[str, str] = {}
    for mountpoint, source in mounts.items():
        if not isinstance(mountpoint, str) or not mountpoint.startswith("/") or not mountpoint.strip("/"):
            raise InvalidInput(f"mount point {mountpoint!r}: give an absolute path, which is the same on every node")
        if not isinstance(source, str):
            raise InvalidInput(f"{mountpoint}: its source is {source!r}; give a URI as in s3://bucket/train")
        found[posixpath.normpath(mountpoint)] = parse_uri(source).uri
    return found


def check_choices(choices: Mapping[str, Any], refresh_every_s: float | None, write_type: str | None) -> dict[str, Any]:
    """What was chosen for a dataset: see Retention.changed.

    Raises InvalidInput for a value that cannot be meant, before anything is done.
    """
    chosen = {choice: value for choice, value in choices.items() if value is not None}
    Retention().changed(chosen)
    if refresh_every_s is not None:
        check_refresh_every(refresh_every_s)
    if write_type is not None:
        check_write_type(write_type)
    return chosen
