"""Many paths in one call: directories are resolved together, files are searched directory by directory.

What a batch costs beyond a search in an array is one dictionary step per path: the master is asked for all directories
that are not held here at once, level by level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycache.client.namespace import Entry, Namespace, Place, require_directory
from raycache.core import paths
from raycache.core.entries import are_directories, encoded, mtimes_ns_of, sizes_of, stats_of
from raycache.core.manifest import Manifest
from raycache.core.values import Dataset, Stat
from raycache.errors import IsADirectory, NotADirectory, NotFound, RaycacheError

_SPELLINGS = {"", ".", ".."}
"""Last parts of a path that are no name: what they mean, or that they are refused, is for the whole path to say."""


class Found(NamedTuple):
    """What a directory knows of names, in columns: one row per name, in the order in which they were asked."""

    exists: NDArray[np.bool_]
    is_dir: NDArray[np.bool_]
    size_bytes: NDArray[np.uint64]
    """0 for what is no file."""
    mtime_ns: NDArray[np.int64]
    """Of files, in nanoseconds since 1970; as ``stat`` has it for directories; 0 for what does not exist."""


class Group(NamedTuple):
    """The URIs of a batch that lie in one directory."""

    dataset: Dataset
    manifest: Manifest
    positions: list[int]
    """Where in the batch they are, ascending."""
    rows: NDArray[np.int64]
    """Their rows; -1 where the directory has no such entry."""


class Resolved(NamedTuple):
    """A batch: what groups answer for, and the rest by position."""

    groups: list[Group]
    rest: dict[int, Place | RaycacheError]


class _Siblings(NamedTuple):
    positions: list[int]
    names: list[str]


def find(dataset: Dataset, manifest: Manifest, names: Sequence[str]) -> Found:
    """Look names up in a directory."""
    rows = manifest.find_many(encoded(names))
    exists = rows >= 0
    is_dir = are_directories(manifest, rows)
    size_bytes, mtime_ns = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.int64)
    size_bytes[exists] = sizes_of(manifest, rows[exists])
    mtime_ns[exists] = mtimes_ns_of(manifest, rows[exists], dataset.attached_ns)
    return Found(exists, is_dir, size_bytes, mtime_ns)


def stat_of(dataset: Dataset, manifest: Manifest, row: int | None) -> Stat:
    """What is known of a place: of a file by its row, else of the directory."""
    about = manifest.directory
    if row is None:
        extra = {"entries": manifest.live_count, "hidden": about.hidden, "version": about.version}
        return Stat(about.path, True, 0, dataset.attached_ns, "", extra)
    name = manifest.name(row).decode("utf-8", "surrogateescape")
    mtime_ns = manifest.mtime_ns(row) or dataset.attached_ns
    path = f"{about.path}/{name}" if about.path else name  # not `manifest.path`: this is a fifth of a `stat`
    return Stat(path, False, manifest.size(row), mtime_ns, manifest.etag(row))


def exists_many(namespace: Namespace, uris: Sequence[str]) -> list[bool]:
    """See FileSystem.exists_many."""
    groups, rest = _resolve(namespace, uris, enter=False)
    found = [False] * len(uris)
    for group in groups:
        for at, is_there in zip(group.positions, (group.rows >= 0).tolist(), strict=True):
            found[at] = is_there
    for at, place in sorted(rest.items()):
        if isinstance(place, RaycacheError) and not isinstance(place, NotFound | NotADirectory):
            raise place
        found[at] = not isinstance(place, RaycacheError)
    return found


def stat_many(namespace: Namespace, uris: Sequence[str]) -> list[Stat]:
    """See FileSystem.stat_many."""
    resolved = _resolve(namespace, uris, enter=True)
    places = _all_there(resolved, uris)
    found: dict[int, Stat] = {at: stat_of(*place) for at, place in places.items()}
    for dataset, manifest, positions, rows in resolved.groups:
        found.update(zip(positions, stats_of(manifest, rows, dataset.attached_ns), strict=True))
    return [found[at] for at in range(len(uris))]


def files(namespace: Namespace, uris: Sequence[str]) -> list[tuple[Manifest, int]]:
    """Manifest and row of each file. Raises what ``Namespace.place`` raises and IsADirectory, for the first of them."""
    resolved = _resolve(namespace, uris, enter=True)
    places = _all_there(resolved, uris, files_only=True)
    found = {at: (manifest, row or 0) for at, (_, manifest, row) in places.items()}
    for _, manifest, positions, rows in resolved.groups:
        found.update((at, (manifest, row)) for at, row in zip(positions, rows.tolist(), strict=True))
    return [found[at] for at in range(len(uris))]


def directories(namespace: Namespace, uris: Sequence[str]) -> list[Manifest]:
    """Manifest of each directory. Raises what ``Namespace.place`` raises and NotADirectory, for the first of them."""
    found: list[Manifest] = []
    for at, place in enumerate(_walk(namespace, uris)):
        if isinstance(place, RaycacheError):
            raise place
        found.append(require_directory(Entry(*place[1:]), uris[at]))
    return found


def _resolve(namespace: Namespace, uris: Sequence[str], *, enter: bool) -> Resolved:
    """Where each URI lies. ``enter``: a directory is its own manifest, as ``Namespace.place`` has it, among the rest;
    else it is a row of its parent's, and its own listing is not asked for."""
    siblings = _by_parent(uris)
    groups: list[Group] = []
    odd: list[int] = []
    for (at_all, names), parent in zip(siblings.values(), _walk(namespace, list(siblings)), strict=True):
        if isinstance(parent, RaycacheError) or parent[2] is not None:
            odd += at_all
            continue
        dataset, manifest, _ = parent
        rows = manifest.find_many(encoded(names))
        unsure = are_directories(manifest, rows) if enter else np.zeros(len(rows), bool)
        # A name that is not here may still be the root of another dataset, or be no name at all.
        nested = namespace.datasets_below(paths.join(dataset.source, manifest.directory.path))
        for at in np.flatnonzero(rows < 0).tolist():
            unsure[at] = nested or names[at] in _SPELLINGS or "\0" in names[at]
        positions = at_all
        if unsure.any():
            odd += [at_all[at] for at in np.flatnonzero(unsure).tolist()]
            positions = [at_all[at] for at in np.flatnonzero(~unsure).tolist()]
        groups.append(Group(dataset, manifest, positions, rows[~unsure]))
    return Resolved(groups, dict(zip(odd, _walk(namespace, [uris[at] for at in odd]), strict=True)))


def _all_there(resolved: Resolved, uris: Sequence[str], *, files_only: bool = False) -> dict[int, Place]:
    """The places of the rest. Raises the error of the first URI, in order, that has none, or is no file."""
    failed: dict[int, RaycacheError] = {}
    good: dict[int, Place] = {}
    for group in resolved.groups:
        missing = np.flatnonzero(group.rows < 0)
        if len(missing):
            at = group.positions[missing[0]]
            failed[at] = NotFound(f"{uris[at]}: no such file or directory")
    for at, place in resolved.rest.items():
        if isinstance(place, RaycacheError):
            failed[at] = place
        elif files_only and place[2] is None:
            failed[at] = IsADirectory(f"{uris[at]} is a directory")
        else:
            good[at] = place
    if failed:
        raise failed[min(failed)]
    return good


def _by_parent(uris: Sequence[str]) -> dict[str, _Siblings]:
    groups: dict[str, _Siblings] = {}
    for at, uri in enumerate(uris):
        parent, _, name = uri.rpartition("/")
        siblings = groups.get(parent)
        if siblings is None:
            siblings = groups[parent] = _Siblings([], [])
        siblings.positions.append(at)
        siblings.names.append(name)
    return groups


def _walk(namespace: Namespace, uris: Sequence[str]) -> list[Place | RaycacheError]:
    """``Namespace.place`` of many, one call to the master per level of depth."""
    located: list[tuple[Dataset, str] | RaycacheError] = []
    for uri in uris:
        try:
            located.append(namespace.locate(uri))
        except RaycacheError as error:
            located.append(error)
    good = [each for each in located if not isinstance(each, RaycacheError)]
    entries = iter(namespace.walk_many(good))
    found: list[Place | RaycacheError] = []
    for each in located:
        entry = each if isinstance(each, RaycacheError) else next(entries)
        found.append(entry if isinstance(entry, RaycacheError) else (each[0], *entry))  # type: ignore[index]
    return found
