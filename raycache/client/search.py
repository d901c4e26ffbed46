"""Trees: ``walk``, ``glob`` and ``files_below``, over directories whose listings are asked for many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from raycache.client.namespace import Namespace, require_directory
from raycache.core import paths
from raycache.core.entries import Rows, are_directories, directory_rows, names_of, rows_by_name
from raycache.core.globbing import glob_column, has_magic
from raycache.core.manifest import Manifest
from raycache.core.values import MANIFESTS_AT_ONCE, Failed
from raycache.errors import InvalidInput, NotADirectory, NotFound


class _Place(NamedTuple):
    """A directory that a search comes to."""

    uri: str
    path: str
    """Inside its dataset."""
    dir_id: int

    def below(self, name: str, dir_id: int) -> _Place:
        return _Place(f"{self.uri.rstrip('/')}/{name}", paths.join(self.path, name), dir_id)


State = tuple[_Place, int]
"""Where a search stands: a directory, and the part of the pattern that its entries have to match."""


def walk(namespace: Namespace, uri: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """See FileSystem.walk. Lazy; a directory that is not held is asked for together with those that come after it."""
    todo = [_top(uri, require_directory(namespace.entry(uri), uri))]
    while todo:
        place = todo.pop()
        base, dir_id = place.uri, place.dir_id
        ahead = [dir_id, *(other.dir_id for other in reversed(todo[1 - MANIFESTS_AT_ONCE :]))]
        manifest = namespace.current(dir_id) or _received(namespace.manifests(ahead)[dir_id])
        manifest = _in_place(namespace, place, manifest)
        rows = rows_by_name(manifest)
        is_dir = are_directories(manifest, rows)
        dirs = names_of(manifest, rows[is_dir])
        children = {name: manifest.child_id(row) for name, row in zip(dirs, rows[is_dir].tolist(), strict=True)}
        yield base, dirs, names_of(manifest, rows[~is_dir])
        # After the yield: as with os.walk, the caller may have taken some out, or changed their order.
        for name in reversed(dirs):
            child = children.get(name)
            if child is None:
                raise NotFound(f"{base.rstrip('/')}/{name}: no such directory")
            todo.append(place.below(name, child))


def glob(namespace: Namespace, pattern: str) -> list[str]:
    """See FileSystem.glob."""
    parts = pattern.split("/")
    authority = 3 if "://" in pattern else 1
    fixed = next((at for at, part in enumerate(parts) if has_magic(part)), len(parts))
    if fixed < authority:
        raise InvalidInput(f"{pattern!r}: the bucket or dataset itself cannot be a pattern")
    base, rest = "/".join(parts[:fixed]), parts[fixed:]
    try:
        manifest, row = namespace.entry(base or "/")
    except (NotFound, NotADirectory):
        return []
    if not rest:
        return [pattern]
    if row is not None:
        return []  # as in a shell: nothing lies below a file
    found = _matches(namespace, _top(base, manifest), _without_pairs(rest))
    return sorted(f"{uri}/{name}" for uri, manifest, rows in found for name in names_of(manifest, rows))


def files_below(namespace: Namespace, uri: str, pattern: str) -> list[tuple[Manifest, Rows]]:
    """Files below a directory that match a pattern relative to it, as rows of manifests, by path of their directory.

    ``**`` alone matches all of them. Raises NotFound, NotADirectory, InvalidInput, and what listing a source raises.
    """
    root = require_directory(namespace.entry(uri), uri)
    parts = pattern.split("/")
    if not all(parts) or {".", ".."} & set(parts):
        raise InvalidInput(f"{pattern!r} is no pattern of paths below a directory; write for example **/*.jpg")
    found: dict[int, tuple[Manifest, list[Rows]]] = {}
    for _, manifest, rows in _matches(namespace, _top(uri.rstrip("/"), root), _without_pairs(parts)):
        files = rows[~are_directories(manifest, rows)]
        if len(files):
            found.setdefault(manifest.directory.dir_id, (manifest, []))[1].append(files)
    # A directory that several ways lead to is met once per part of the pattern.
    merged = [
        (manifest, rows[0] if len(rows) == 1 else np.unique(np.concatenate(rows))) for manifest, rows in found.values()
    ]
    return sorted(merged, key=lambda part: part[0].directory.path)


def _without_pairs(parts: Sequence[str]) -> list[str]:
    """Two stars next to each other mean what one pair means."""
    return [part for at, part in enumerate(parts) if part != "**" or list(parts[at - 1 : at]) != ["**"]]


def _top(uri: str, manifest: Manifest) -> _Place:
    return _Place(uri, manifest.directory.path, manifest.directory.dir_id)


def _in_place(namespace: Namespace, place: _Place, manifest: Manifest) -> Manifest:
    """The same, or a newer one: what was seen is of another path, as the directory was moved and that is not published
    yet; nor is then what was changed in it since."""
    return manifest if manifest.directory.path == place.path else namespace.renewed(place.dir_id)


def _matches(namespace: Namespace, top: _Place, parts: Sequence[str]) -> Iterator[tuple[str, Manifest, Rows]]:
    """URI and manifest of each directory with entries that match, and their rows."""
    todo: list[State] = [(top, 0)]
    seen: set[tuple[int, int]] = set()  # two stars in two places lead to one directory in many ways
    while todo:
        now = todo[-MANIFESTS_AT_ONCE:]
        del todo[-MANIFESTS_AT_ONCE:]
        manifests = namespace.manifests(place.dir_id for place, _ in now)
        for place, at in now:
            if (place.dir_id, at) in seen:
                continue
            seen.add((place.dir_id, at))
            manifest = _in_place(namespace, place, _received(manifests[place.dir_id]))
            if at + 1 == len(parts):
                yield place.uri, manifest, _matching(manifest, parts[at])
            todo += _onward(manifest, place, at, parts)


def _onward(manifest: Manifest, place: _Place, at: int, parts: Sequence[str]) -> Iterator[State]:
    """Where a search goes from a directory."""
    is_last = at + 1 == len(parts)
    if parts[at] == "**":
        rows, after = directory_rows(manifest), at
        if not is_last:
            yield place, at + 1
    elif is_last:
        return
    else:
        rows, after = _matching(manifest, parts[at], only=directory_rows(manifest)), at + 1
    for name, row in zip(names_of(manifest, rows), rows.tolist(), strict=True):
        child = manifest.child_id(row)
        if child is not None:
            yield place.below(name, child), after


def _matching(manifest: Manifest, part: str, only: Rows | None = None) -> Rows:
    """Live rows that match one part of a pattern, of ``only`` these rows where given."""
    if not has_magic(part):
        row = manifest.find(part.encode("utf-8", "surrogateescape"))
        return np.array([] if row is None else [row], np.uint32)
    rows = manifest.live_rows(0, manifest.row_count) if only is None else only
    if part == "**":
        return rows
    whole = len(rows) == manifest.row_count
    return rows[glob_column(manifest.column("names") if whole else manifest.columns.names.take(rows), part)]


def _received(answer: Manifest | Failed) -> Manifest:
    if isinstance(answer, Failed):
        raise answer.error
    return answer
