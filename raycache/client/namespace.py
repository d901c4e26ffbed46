"""Names to rows: URIs, datasets and the manifests that this process holds.

The master is asked once per directory, for several of them in one call where they are known together; after that a
lookup is a search in an array. The table of held manifests is bounded; a manifest asked for again later may be a newer
version, in which old row numbers still mean the same. A namespace *as of* a change shows every directory as it was
after that change of the catalog, for as long as it lives.

Threading: safe; one thread fetches a manifest, others that want the same one wait for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from raycache.client.protocols import MasterApi
from raycache.core import paths
from raycache.core.manifest import Manifest
from raycache.core.values import MANIFESTS_AT_ONCE, Dataset, Failed
from raycache.errors import InvalidInput, IsADirectory, NotADirectory, NotFound, RaycacheError

MANIFESTS_HELD = 16_384
"""Directories whose manifests one process keeps mapped; about 6 KB of Python each."""


class WouldBlock(Exception):
    """Asked not to wait, and the answer is not held here."""


class Entry(NamedTuple):
    """A row of a manifest, or (row None) the directory that the manifest is of."""

    manifest: Manifest
    row: int | None


Place = tuple[Dataset, Manifest, int | None]
"""An entry, and the dataset that it is in."""


class Namespace:
    """Resolves what users write to manifests and rows."""

    def __init__(self, master: MasterApi, as_of: int | None = None) -> None:
        """``as_of``: the change number to show everything at; None shows the newest that this process was told of."""
        self.as_of = as_of
        self._master = master
        self._lock = threading.Lock()
        self._flights: dict[int, Future[Manifest]] = {}
        self._held: OrderedDict[int, Manifest] = OrderedDict()
        self._datasets: tuple[Dataset, ...] = ()
        self._near: dict[str, tuple[Dataset, int]] = {}
        """Directories by the URI that users write for them, so that the next file in one costs one search."""
        self._moves = 0
        """How often ``_near`` was void; what was looked up before must not be put there after."""

    def attach(self, source: str, name: str | None, options: Mapping[str, Any]) -> Dataset:
        """See MasterApi.attach."""
        dataset = self._master.attach(source, name, options)
        self.learn_datasets()
        return dataset

    def set_refresh(self, name: str, every_s: float) -> Dataset:
        """See MasterApi.set_refresh."""
        dataset = self._master.set_refresh(name, every_s)
        self.learn_datasets()
        return dataset

    def dataset(self, name: str) -> Dataset:
        """A dataset as it is now. Raises NotFound."""
        self.learn_datasets()
        found = next((dataset for dataset in self._datasets if dataset.name == name), None)
        if found is None:
            raise NotFound(f"no dataset is named {name!r}; there are: {self._names()}")
        return found

    def is_dataset(self, name: str) -> bool:
        """Whether a dataset has this name now."""
        self.learn_datasets()
        return any(dataset.name == name for dataset in self._datasets)

    def locate(self, uri: str) -> tuple[Dataset, str]:
        """The dataset that a URI belongs to, and the path inside it.

        ``raycache://name/path``, or a source URI, which belongs to the dataset with the longest matching source.
        Raises InvalidInput and NotFound.
        """
        location = paths.parse_uri(uri)
        found = self._match(location)
        if found is None:
            self.learn_datasets()
            found = self._match(location)
        if found is not None:
            return found
        if location.scheme == paths.RAYCACHE_SCHEME:
            raise NotFound(f"{uri}: no dataset is named {location.authority!r}; there are: {self._names()}")
        raise NotFound(f"{uri}: no dataset has this source; mount it, or name it with raycache.dataset(name, source)")

    def datasets_below(self, source: str) -> bool:
        """Whether a known dataset's source is an entry of the directory with this source URI."""
        return any(dataset.source.rpartition("/")[0] == source for dataset in self._datasets)

    def learn_datasets(self) -> None:
        """Ask the master which datasets there are, and what is chosen for them."""
        self._datasets = tuple(self._master.datasets())
        with self._lock:
            self._forget_near()

    def _names(self) -> str:
        return ", ".join(dataset.name for dataset in self._datasets) or "none yet"

    def _match(self, location: paths.Location) -> tuple[Dataset, str] | None:
        if location.scheme == paths.RAYCACHE_SCHEME:
            named = (dataset for dataset in self._datasets if dataset.name == location.authority)
            return next(((dataset, location.path) for dataset in named), None)
        best: tuple[Dataset, str] | None = None
        for dataset in self._datasets:
            path = relative(location.uri, dataset.source)
            if path is not None and (best is None or len(dataset.source) > len(best[0].source)):
                best = (dataset, path)
        return best

    def entry(self, uri: str) -> Entry:
        """What a URI names. Raises InvalidInput, NotFound, NotADirectory."""
        return Entry(*self.place(uri)[1:])

    def place(self, uri: str) -> Place:
        """The same, with its dataset. A file in a directory that was named before is one search."""
        parent, _, name = uri.rpartition("/")
        near = self._near.get(parent)
        if near is not None:
            manifest = self._held.get(near[1])  # without the lock: a single step of the interpreter
            row = None if manifest is None else manifest.find(name.encode("utf-8", "surrogateescape"))
            if manifest is not None and row is not None and manifest.child_id(row) is None:
                return near[0], manifest, row
        moves = self._moves
        dataset, path = self.locate(uri)
        manifest, row = self.walk(dataset, path)
        if row is not None and manifest.name(row) == name.encode("utf-8", "surrogateescape"):
            self._keep_near(parent, dataset, manifest, moves)
        return dataset, manifest, row

    def walk(self, dataset: Dataset, path: str) -> Entry:
        """What a path inside a dataset names. Raises NotFound, NotADirectory."""
        steps = _steps(dataset, path)
        try:
            step = next(steps)
            while True:
                step = steps.send(self._enter(dataset, step))
        except StopIteration as end:
            found: Entry = end.value
            return found

    def walk_many(self, wanted: Sequence[tuple[Dataset, str]]) -> list[Entry | RaycacheError]:
        """The same for many paths side by side, errors in their places: one call to the master per level of depth."""
        found: dict[int, Entry | RaycacheError] = {}
        under_way = {at: _steps(*path) for at, path in enumerate(wanted)}
        asked = {at: next(steps) for at, steps in under_way.items()}
        while asked:
            manifests, waiting, asked = self.manifests(step.dir_id for step in asked.values()), asked, {}
            for at, step in waiting.items():
                answer = manifests[step.dir_id]
                try:
                    if isinstance(answer, Failed):
                        if not isinstance(answer.error, NotFound):
                            raise answer.error
                        found[at] = self.walk(*wanted[at])  # perhaps it has another id by now: see _enter
                        continue
                    asked[at] = under_way[at].send(answer)
                except StopIteration as end:
                    found[at] = end.value
                except RaycacheError as error:
                    found[at] = error
        return [found[at] for at in range(len(wanted))]

    def _enter(self, dataset: Dataset, step: _Step) -> Manifest:
        """The directory that a path goes on in. One whose listing was damaged has got another id, which its parent's
        newest version has, or the dataset if it is its root: an id that is not known any more is looked up there once.
        """
        try:
            return self.manifest(step.dir_id)
        except NotFound:
            new_id = self._new_root_id(dataset) if step.parent is None else self._new_child_id(step.parent, step.row)
            if new_id in (None, step.dir_id):
                raise
            return self.manifest(new_id)

    def _new_root_id(self, dataset: Dataset) -> int | None:
        self.learn_datasets()
        known = (each for each in self._datasets if (each.name, each.source) == (dataset.name, dataset.source))
        return next((each.root_id for each in known), None)

    def _new_child_id(self, parent: Manifest, row: int) -> int | None:
        if self.as_of is not None:
            return None  # what it was then is lost
        about = parent.directory
        newest = self._master.manifest(about.dir_id, about.version + 1)
        now = newest.find(parent.name(row))
        new_id = None if now is None else newest.child_id(now)
        if new_id is not None:
            self._hold(about.dir_id, newest)
        return new_id

    def manifest(self, dir_id: int, *, wait: bool = True) -> Manifest:
        """The manifest of a directory. Raises WouldBlock when it is not held and ``wait`` is False."""
        with self._lock:
            held = self._held.get(dir_id)
            if held is not None:
                self._held.move_to_end(dir_id)
                return held
            if not wait:
                raise WouldBlock
            flight = self._flights.get(dir_id)
            mine = flight is None
            if flight is None:
                flight = self._flights[dir_id] = Future()
        if mine:
            self._fetch(dir_id, flight)
        # Those who wait get the answer, or the error, of the one call; it has a deadline.
        return flight.result()

    def held(self, dir_id: int) -> Manifest | None:
        """The manifest of a directory, if it is held here."""
        with self._lock:
            return self._held.get(dir_id)

    def manifests(self, dir_ids: Iterable[int]) -> dict[int, Manifest | Failed]:
        """Manifests of several directories: those not held in one call to the master per MANIFESTS_AT_ONCE of them."""
        found: dict[int, Manifest | Failed] = {}
        flights: dict[int, Future[Manifest]] = {}
        mine: list[int] = []
        with self._lock:
            for dir_id in dict.fromkeys(dir_ids):
                held = self._held.get(dir_id)
                if held is not None:
                    self._held.move_to_end(dir_id)
                    found[dir_id] = held
                    continue
                if dir_id not in self._flights:
                    self._flights[dir_id] = Future()
                    mine.append(dir_id)
                flights[dir_id] = self._flights[dir_id]
        self._fetch_many(mine)
        for dir_id, flight in flights.items():
            try:
                found[dir_id] = flight.result()
            except RaycacheError as error:
                found[dir_id] = Failed(error)
        return found

    def _fetch(self, dir_id: int, flight: Future[Manifest]) -> None:
        try:
            flight.set_result(self._hold(dir_id, self._master.manifest(dir_id)))
        except BaseException as error:  # noqa: BLE001 - whatever it is, others wait for it too; `result` raises it
            flight.set_exception(error)
        finally:
            with self._lock:
                del self._flights[dir_id]

    def _fetch_many(self, dir_ids: Sequence[int]) -> None:
        """Land the flights of these directories. A call that fails fails them all: the next would wait as long."""
        failure: BaseException | None = None
        for start in range(0, len(dir_ids), MANIFESTS_AT_ONCE):
            part = dir_ids[start : start + MANIFESTS_AT_ONCE]
            answers: Sequence[Manifest | Failed] = ()
            try:
                answers = self._master.manifests(part) if failure is None else ()
            except BaseException as error:  # noqa: BLE001 - as in _fetch
                failure = error
            for at, dir_id in enumerate(part):
                self._land(dir_id, failure or answers[at])

    def _land(self, dir_id: int, answer: Manifest | Failed | BaseException) -> None:
        with self._lock:
            flight = self._flights[dir_id]
        try:
            if isinstance(answer, Manifest):
                flight.set_result(self._hold(dir_id, answer))
            else:
                flight.set_exception(answer.error if isinstance(answer, Failed) else answer)
        except BaseException as error:  # noqa: BLE001 - as in _fetch
            flight.set_exception(error)
        finally:
            with self._lock:
                del self._flights[dir_id]

    def forget(self) -> None:
        """Hold nothing any more: each directory is asked for again."""
        with self._lock:
            self._held.clear()
            self._forget_near()

    def forget_below(self, dataset: str, path: str) -> None:
        """Hold neither a directory nor any below it: each is asked for again."""
        with self._lock:
            for dir_id, manifest in list(self._held.items()):
                about = manifest.directory
                if about.dataset == dataset and (not path or f"{about.path}/".startswith(f"{path}/")):
                    del self._held[dir_id]

    def follow(self, since: int) -> tuple[int, list[tuple[Manifest | None, Manifest]]]:
        """Take over what others refreshed: of the directories held here, the old manifest and the new one.

        ``since``: what the last call returned first. One call to the master when nothing changed, and one per
        MANIFESTS_AT_ONCE of what did. The old one is None
        where the new one was held already: what was told of it before is then not known. As of a change nothing moves.
        """
        if self.as_of is not None:
            return since, []
        newest, dir_ids = self._master.changes(since)
        replaced: list[tuple[Manifest | None, Manifest]] = []
        with self._lock:
            known = [(each, self._held.get(each)) for each in dir_ids if each in self._held or each in self._flights]
        for start in range(0, len(known), MANIFESTS_AT_ONCE):
            part = known[start : start + MANIFESTS_AT_ONCE]
            answers = self._master.manifests([dir_id for dir_id, _ in part])
            for (dir_id, held), new in zip(part, answers, strict=True):
                if isinstance(new, Failed):
                    raise new.error
                self._hold(dir_id, new)
                is_newer = held is not None and new.directory.version > held.directory.version
                replaced.append((held if is_newer else None, new))
        return newest, replaced

    def refresh(self, uri: str) -> Manifest:
        """List a directory again and hold its newest version. Raises NotADirectory for a file, InvalidInput as of a
        change."""
        if self.as_of is not None:
            raise InvalidInput(f"{uri}: a snapshot stays as it is; use raycache.refresh, and make another snapshot")
        entry = self.entry(uri)
        if entry.row is not None:
            raise NotADirectory(f"{uri} is a file; refresh its directory")
        dir_id = entry.manifest.directory.dir_id
        version = self._master.refresh(dir_id)
        if version != entry.manifest.directory.version:
            self._hold(dir_id, self._master.manifest(dir_id, version))
        return self.manifest(dir_id)

    def _keep_near(self, parent: str, dataset: Dataset, manifest: Manifest, moves: int) -> None:
        if "://" not in parent and not parent.startswith("/"):
            return  # relative to where the process is, which may move
        with self._lock:
            if moves == self._moves:
                self._near[parent] = (dataset, manifest.directory.dir_id)
                while len(self._near) > MANIFESTS_HELD:
                    del self._near[next(iter(self._near))]

    def _forget_near(self) -> None:
        """With the lock held: a directory may have gone, or belong to another dataset now."""
        self._near.clear()
        self._moves += 1

    def _hold(self, dir_id: int, manifest: Manifest) -> Manifest:
        """Keep what the master handed out, as it is to be shown; returns that."""
        if self.as_of is not None:
            manifest = manifest.as_of(self.as_of)
        with self._lock:
            there = self._held.get(dir_id)
            if there is not None and there.directory.version > manifest.directory.version:
                return manifest  # an answer that was overtaken
            if there is not None:
                self._forget_near()
            self._held[dir_id] = manifest
            self._held.move_to_end(dir_id)
            while len(self._held) > MANIFESTS_HELD:
                self._held.popitem(last=False)
        return manifest


class _Step(NamedTuple):
    """A directory that is needed to go on."""

    dir_id: int
    parent: Manifest | None
    """None for the root of a dataset; else the directory that has it, at ``row``."""
    row: int


def _steps(dataset: Dataset, path: str) -> Generator[_Step, Manifest, Entry]:
    """The way of a path through its directories: asks for one after the other and ends at the entry.

    Raises NotFound, NotADirectory.
    """
    parts = path.split("/") if path else []
    manifest = yield _Step(dataset.root_id, None, 0)
    for depth, part in enumerate(parts):
        row = manifest.find(part.encode("utf-8", "surrogateescape"))
        if row is None:
            raise NotFound(f"{paths.join(dataset.source, *parts[: depth + 1])}: no such file or directory")
        child = manifest.child_id(row)
        if child is not None:
            manifest = yield _Step(child, manifest, row)
        elif depth + 1 < len(parts):
            raise NotADirectory(f"{paths.join(dataset.source, *parts[: depth + 1])} is a file, not a directory")
        else:
            return Entry(manifest, row)
    return Entry(manifest, None)


def relative(uri: str, source: str) -> str | None:
    """The path of ``uri`` below ``source``, or None when it is not below it."""
    if uri == source:
        return ""
    base = source if source.endswith("/") else source + "/"
    return uri[len(base) :] if uri.startswith(base) else None


def require_directory(entry: Entry, uri: str) -> Manifest:
    """The manifest of a directory. Raises NotADirectory for a file."""
    if entry.row is not None:
        raise NotADirectory(f"{uri} is a file, not a directory")
    return entry.manifest


def require_file(entry: Entry, uri: str) -> tuple[Manifest, int]:
    """The row of a file. Raises IsADirectory for a directory."""
    if entry.row is None:
        raise IsADirectory(f"{uri} is a directory")
    return entry.manifest, entry.row
