"""What a dataset may keep, and for how long: values that users choose, checked when they are made. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args

from raycache.config import Eviction, parse_size
from raycache.errors import InvalidInput

EVICTIONS = get_args(Eviction)
PRIORITY_MAX = 1000
REPLICAS_MAX = 16
PINS_MAX = 1000
"""Pins of one dataset: each is looked at for each block that comes in."""
AS_SET = "default"
"""What users write to take a choice back: the setting's eviction, or no quota."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How the blocks of one dataset are kept. Raises InvalidInput when it is made of what cannot be meant."""

    eviction: Eviction | None = None
    """What happens when there is no room for one more block of it; None: as the cache's setting says."""
    quota_bytes: int | None = None
    """Most bytes that it may hold in all tiers of all workers, copies counted; None: no limit. A worker's share is that
    of its capacity, see ``share``."""
    ttl_s: float = 0.0
    """A block that no worker was asked for during so long is freed; 0: never."""
    priority: int = 0
    """Blocks of datasets with a lower one make way for its blocks."""
    replicas: int = 1
    """Workers that hold each of its blocks."""
    pins: tuple[str, ...] = ()
    """Paths inside the dataset, ``""`` for all of it: what is at or below them is not evicted."""
    pinned_blocks: frozenset[bytes] = frozenset()
    """Blocks of those pins that are files. Whoever knows the listings fills them in."""

    def __post_init__(self) -> None:
        _check(self.eviction in (None, *EVICTIONS), f"eviction {self.eviction!r}: choose {', '.join(EVICTIONS)}")
        quota_is_fine = self.quota_bytes is None or (_is_int(self.quota_bytes) and self.quota_bytes >= 0)
        _check(quota_is_fine, f"quota {self.quota_bytes!r}: give a size such as '500GB', or '{AS_SET}' for no limit")
        is_time = isinstance(self.ttl_s, int | float) and not isinstance(self.ttl_s, bool)
        _check(
            is_time and math.isfinite(self.ttl_s) and (self.ttl_s == 0 or self.ttl_s >= 1),
            f"ttl {self.ttl_s!r} s: give a number of seconds, 1 or more, or 0 for never",
        )
        _check(
            _is_int(self.priority) and abs(self.priority) <= PRIORITY_MAX,
            f"priority {self.priority!r}: give a whole number between -{PRIORITY_MAX} and {PRIORITY_MAX}",
        )
        _check(
            _is_int(self.replicas) and 1 <= self.replicas <= REPLICAS_MAX,
            f"replicas {self.replicas!r}: give a whole number between 1 and {REPLICAS_MAX}",
        )
        _check(len(self.pins) <= PINS_MAX, f"{len(self.pins)} pins of one dataset: at most {PINS_MAX}; pin directories")

    def changed(self, changes: Mapping[str, Any]) -> Retention:
        """With other values of what users choose: ``eviction``, ``quota`` (a size), ``ttl_s``, ``priority``,
        ``replicas``. Raises InvalidInput."""
        unknown = sorted(set(changes) - set(CHOICES))
        _check(not unknown, f"no choice named {', '.join(unknown)}; there are {', '.join(CHOICES)}")
        given = dict(changes)
        if "quota" in given:
            quota = given.pop("quota")
            given["quota_bytes"] = None if quota == AS_SET else parse_size(quota)
        if given.get("eviction") == AS_SET:
            given["eviction"] = None
        return replace(self, **given)

    def share(self, capacity_bytes: int, total_bytes: int) -> Retention:
        """What of it is for a worker that has so much of the cluster's capacity: its part of the quota."""
        if self.quota_bytes is None:
            return self
        return replace(self, quota_bytes=self.quota_bytes * capacity_bytes // max(1, total_bytes))

    def holds(self, directory: str, block_id: bytes) -> bool:
        """Whether a block with files of this directory is pinned."""
        return block_id in self.pinned_blocks or any(is_within(directory, pin) for pin in self.pins)

    def as_json(self) -> dict[str, Any]:
        """Plain values; ``from_json`` makes the same of them."""
        about = asdict(self)
        return {**about, "pins": list(self.pins), "pinned_blocks": sorted(one.hex() for one in self.pinned_blocks)}

    @staticmethod
    def from_json(about: Mapping[str, Any]) -> Retention:
        """See ``as_json``; what is missing has its default. Raises InvalidInput."""
        known = {name: about[name] for name in _FIELDS if name in about}
        known["pins"] = tuple(known.get("pins", ()))
        known["pinned_blocks"] = frozenset(bytes.fromhex(one) for one in known.get("pinned_blocks", ()))
        return Retention(**known)


CHOICES = ("eviction", "quota", "ttl_s", "priority", "replicas")
"""What users choose for a dataset; pins have verbs of their own."""
_FIELDS = tuple(field.name for field in fields(Retention))


def is_within(path: str, above: str) -> bool:
    """Whether a path inside a dataset is ``above``, or below it."""
    return not above or path == above or path.startswith(above + "/")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(fine: bool, problem: str) -> None:
    if not fine:
        raise InvalidInput(problem)
