"""Names to rows: URIs, datasets, and paths through the manifests that this process holds.

Once a directory's manifest is held a lookup is a search in an array. What is not found is looked for once more if the
master knows better (``doubts``), so that what somebody else just wrote is there. A namespace *as of* a change shows
every directory as it was after that change of the catalog, for as long as it lives.

Threading: safe.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from raycache.client.doubts import Doubts
from raycache.client.manifests import MANIFESTS_HELD, Manifests, Publisher, WouldBlock, key_of
from raycache.client.protocols import MasterApi
from raycache.core import paths
from raycache.core.manifest import Manifest
from raycache.core.values import Dataset, Failed
from raycache.errors import Changed, InvalidInput, IsADirectory, NotADirectory, NotFound, RaycacheError

__all__ = ["Entry", "Namespace", "Place", "WouldBlock", "relative", "require_directory", "require_file"]

_Found = TypeVar("_Found")


class Tree(Publisher, Protocol):
    """See TreeApi."""

    def getattr(self, place: tuple[str, str]) -> object:
        """See TreeApi."""
        ...


class Entry(NamedTuple):
    """A row of a manifest, or (row None) the directory that the manifest is of."""

    manifest: Manifest
    row: int | None


Place = tuple[Dataset, Manifest, int | None]
"""An entry, and the dataset that it is in."""


class Namespace(Manifests):
    """Resolves what users write to manifests and rows."""

    def __init__(self, master: MasterApi, as_of: int | None = None, tree: Tree | None = None) -> None:
        """See Manifests. ``tree``: what was written; None where names are what is held here, whatever others write."""
        super().__init__(master, as_of, tree)
        self._tree = tree
        self._doubts = Doubts()
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
            self._replaced()

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
        near = self._near_place(uri)
        if near is not None:
            return near
        if self._touched:
            self._ask_first(uri)
        return self.look([uri], lambda: self._place(uri))

    def look(
        self, uris: Sequence[str], look: Callable[[], _Found], is_whole: Callable[[_Found], bool] = lambda _: True
    ) -> _Found:
        """What ``look`` returns or raises; a second time if it does not find some of the URIs, or finds what is not
        there any more, and others may have written them meanwhile."""
        try:
            found = look()
        except (NotFound, NotADirectory):
            if not self.doubt(uris):
                raise
            return look()
        except Changed:
            if not self.doubt(uris, anyway=True):
                raise
            return look()
        return found if is_whole(found) or not self.doubt(uris) else look()

    def doubt(self, uris: Sequence[str], *, anyway: bool = False) -> bool:
        """Have the next look at these find what others wrote; False where it would find what the last one found.

        One name is asked for; of many, their directories are looked at again. ``anyway``: see Doubts.
        """
        if self._tree is None:
            return False
        with self._doubts.asking(anyway=anyway) as allowed:
            if not allowed:
                return False
            try:
                places = [(dataset.name, path) for dataset, path in map(self.locate, uris)]
                if len(places) == 1:
                    self._tree.getattr(places[0])
            except RaycacheError:
                return False  # it is not there; or the master is away, and what is held counts
        for dataset, path in {(dataset, paths.split(path)[0]) for dataset, path in places if path}:
            self.touched(dataset, path, by_others=True)
        return True

    def _near_place(self, uri: str) -> Place | None:
        parent, _, name = uri.rpartition("/")
        near = self._near.get(parent)
        if near is None:
            return None
        manifest = self._held.get(near[1])  # without the lock: a single step of the interpreter
        if manifest is None or (self._touched and key_of(manifest) in self._touched):
            return None
        row = manifest.find(name.encode("utf-8", "surrogateescape"))
        return None if row is None or manifest.child_id(row) is not None else (near[0], manifest, row)

    def _ask_first(self, uri: str) -> None:
        """A directory that this process wrote to has to be published to be looked at; for what is not there, which
        writers often look for, that is spared. Raises NotFound, NotADirectory."""
        dataset, path = self.locate(uri)
        if self._tree is not None and (dataset.name, paths.split(path)[0]) in self._touched:
            self._tree.getattr((dataset.name, path))

    def _place(self, uri: str) -> Place:
        moves = self._moves
        dataset, path = self.locate(uri)
        manifest, row = self.walk(dataset, path)
        parent, _, name = uri.rpartition("/")
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
                    if step.behind:
                        answer = self._enter(wanted[at][0], step)
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
            return self.renewed(step.dir_id) if step.behind else self.manifest(step.dir_id)
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

    def touched(self, dataset: str, path: str, *, by_others: bool = False) -> None:
        """Entries of a directory were changed: who looks at them next sees what is there now.

        It may have been made with all that is above it; ``by_others``: or these may be others now.
        """
        with self._lock:
            self._touches += 1
            self._touch(dataset, path)
            dir_id = next((each.root_id for each in self._datasets if each.name == dataset), None)
            above = ""
            for name in path.split("/") if path else ():
                held = None if dir_id is None else self._held.get(dir_id)
                row = None if held is None else held.find(name.encode("utf-8", "surrogateescape"))
                dir_id = None if held is None or row is None else held.child_id(row)
                if dir_id is None or by_others:
                    self._touch(dataset, above)
                above = paths.join(above, name)

    def settled_change(self) -> int:
        """The number of the newest change, after all that this process wrote was published: who shows that shows it."""
        self.settle()
        return self._master.newest_change()

    def settle(self) -> None:
        """Have all published that this process wrote."""
        with self._lock:
            touched = list(self._touched)
            known = {each.name: each for each in self._datasets}
        self.walk_many([(known[dataset], path) for dataset, path in touched if dataset in known])

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

    def _replaced(self) -> None:
        """With the lock held: a directory may have gone, or belong to another dataset now."""
        self._near.clear()
        self._moves += 1


class _Step(NamedTuple):
    """A directory that is needed to go on."""

    dir_id: int
    parent: Manifest | None
    """None for the root of a dataset; else the directory that has it, at ``row``."""
    row: int
    behind: bool = False
    """Its manifest was seen, and it is of another path: it was moved, and that is not published yet."""


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
            step = _Step(child, manifest, row)
            manifest = yield step
            if manifest.directory.path != "/".join(parts[: depth + 1]):
                manifest = yield step._replace(behind=True)
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
