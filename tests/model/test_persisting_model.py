"""Whatever writers do, and whatever goes wrong on the way, the source ends up with just what the tree has.

Random changes of a tree, workers that take turns with them, and faults drawn from a seed: requests that fail before
they have done anything, requests that succeed and whose answer is lost, workers that die with all they were at, answers
of the master that are lost, sources that are away for a while. Then all is well again, and the source must hold the
bytes of each file under its name, and nothing else. In between, each file can be read, all the time.

More seeds: RAYCACHE_PERSIST_SEEDS=1000.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from raycache.core.inode import EXCHANGE, Content, Extent, Segment, pieces
from raycache.core.paths import parse_uri
from raycache.core.persisting import DONE, KEPT, LATER, Outcome, Task
from raycache.core.values import Buffer
from raycache.errors import RaycacheError, SourceUnavailable
from raycache.meta.catalog import Catalog
from raycache.meta.handout import Handout
from raycache.meta.metadata import Metadata
from raycache.store import carrying
from raycache.store.carrying import carry_out
from raycache.store.persisting import BEGIN_S
from raycache.ufs import open_ufs
from raycache.ufs.base import Limits
from raycache.ufs.generic import FsspecUfs

SEEDS = int(os.environ.get("RAYCACHE_PERSIST_SEEDS", "30"))
SECOND_NS = 10**9
STEPS, CHANGES_MAX = 25, 4
LISTED = ("a", "b", "d/one", "d/two", "d/deep/three", "e/four")
NAMES = ("a", "b", "c", "one", "two")
DIRECTORIES = ("", "d", "d/deep", "e", "new", "new/er")
WRITES = ("put", "copy", "delete", "make_directory", "remove_directory")


class FaultyUfs:
    """A source whose requests fail, before or after they have done what they were to do."""

    def __init__(self, ufs: Any, random: Random) -> None:
        self.ufs = ufs
        self.rate = 0.0
        self._random = random

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.ufs, name)
        if name not in (*WRITES, "get", "stat", "mark_of"):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._random.random() < self.rate:
                raise SourceUnavailable("not even begun")
            answer = method(*args, **kwargs)
            if name in WRITES and self._random.random() < self.rate:
                raise SourceUnavailable("done, and the answer lost")
            return answer

        return call


class Run:
    """One run of the model."""

    def __init__(self, kind: str, seed: int, root: Path) -> None:
        self.random = Random(seed)
        self.now_ns = 10**19 // 4
        name = f"memory://{secrets.token_hex(6)}/d"
        source = str(root) if kind == "local" else name
        real: Any = open_ufs(source) if kind != "fsspec" else FsspecUfs(parse_uri(name), {}, Limits())
        for path in LISTED:
            real.put(path, path.encode() * 100)
        self.ufs = FaultyUfs(real, self.random)
        self.catalog = Catalog.open(":memory:")
        self.metadata = Metadata(self.catalog, {}, Limits(), 1 << 20, self.clock)
        # The catalog lists through an adapter of its own: fsspec's memory is another one than obstore's.
        self.metadata._sources.call = lambda _, use: use(real)  # type: ignore[method-assign]
        self.add_dataset(source)
        self.tree = self.metadata.tree
        self.handout = Handout(self.catalog, self.clock, self.random)
        self.files = {path: path.encode() * 100 for path in LISTED}
        self.segments: dict[str, bytes] = {}
        self.workers = {name: Worker(self, name) for name in ("w1", "w2")}
        self.ticks = itertools.count(1)

    def add_dataset(self, source: str) -> None:
        self.metadata._probe = lambda *_: self.ufs.ufs.list_directory("")  # type: ignore[method-assign]
        self.metadata.attach(source, "data", {})

    def clock(self) -> int:
        self.now_ns += 1000
        return self.now_ns

    def step(self) -> None:
        for _ in range(self.random.randrange(CHANGES_MAX)):
            with suppress(RaycacheError):
                self.random.choice([self.write, self.write, self.edit, self.move, self.remove, self.make, self.clone])()
        for worker in self.workers.values():
            worker.step()
        if self.random.random() < 0.1:
            self.ufs.rate = self.random.choice([0.0, 0.1, 0.3, 1.0])
        if self.random.random() < 0.05:  # the master starts anew
            self.handout = Handout(self.catalog, self.clock, self.random)
        self.now_ns += self.random.randrange(3 * SECOND_NS)

    # Changes.

    def write(self) -> None:
        path = self.path()
        content, segments = self.fresh(self.random.randrange(200))
        above, _, name = path.rpartition("/")
        self.tree.put(("data", above), name.encode(), 0o644, content, segments, 5)
        self.files[path] = self.bytes_of(content)

    def edit(self) -> None:
        path = self.random.choice(sorted(self.files) or ["none"])
        _, old = self.tree.content(("data", path))
        content, segments = self.fresh(self.random.randrange(1, 50))
        start = self.random.randrange(old.size_bytes + 1)
        stop = start + content.size_bytes
        size = max(old.size_bytes, stop)
        kept = [*pieces(old.extents, 0, start), *pieces(old.extents, stop, max(0, size - stop))]
        mine = [extent._replace(at=start + extent.at) for extent in content.extents]
        edited = Content(size, tuple(sorted([*kept, *mine])))
        if self.random.random() < 0.3:  # what was put meanwhile must not be lost for a writer that began before
            self.workers["w1"].step()
        self.tree.commit(("data", path), edited, segments, 5)
        self.files[path] = (
            self.files[path][:start].ljust(start, b"\0") + self.bytes_of(content) + self.files[path][stop:]
        )

    def move(self) -> None:
        old = self.random.choice([*sorted(self.files), *DIRECTORIES[1:]])
        new = self.path() if self.random.random() < 0.7 else self.random.choice(DIRECTORIES[1:])
        flags = EXCHANGE if self.random.random() < 0.2 else 0
        (above, _, name), (to_above, _, to_name) = old.rpartition("/"), new.rpartition("/")
        self.tree.rename(("data", above), name.encode(), ("data", to_above), to_name.encode(), flags)
        if old == new:
            return
        moved, back = self.below(old), self.below(new)
        for path in (*moved, *back):
            self.files.pop(path, None)
        self.files |= {new + path[len(old) :]: data for path, data in moved.items()}
        if flags:
            self.files |= {old + path[len(new) :]: data for path, data in back.items()}

    def remove(self) -> None:
        path = self.random.choice([*sorted(self.files), self.random.choice(DIRECTORIES[1:])])
        self.tree.remove_tree(("data", path))
        for each in self.below(path):
            del self.files[each]

    def make(self) -> None:
        above, _, name = self.random.choice(DIRECTORIES[1:]).rpartition("/")
        self.tree.mkdir(("data", above), name.encode(), 0o755, 0, 0)

    def clone(self) -> None:
        """Another file of the same bytes, without reading them."""
        old, new = self.random.choice(sorted(self.files) or ["none"]), self.path()
        _, content = self.tree.content(("data", old))
        above, _, name = new.rpartition("/")
        self.tree.put(("data", above), name.encode(), 0o644, content, [], 5)
        self.files[new] = self.files[old]

    def path(self) -> str:
        above = self.random.choice(DIRECTORIES)
        return f"{above}/{self.random.choice(NAMES)}" if above else self.random.choice(NAMES)

    def below(self, path: str) -> dict[str, bytes]:
        return {each: data for each, data in self.files.items() if each == path or each.startswith(path + "/")}

    # Bytes.

    def fresh(self, size_bytes: int) -> tuple[Content, list[Segment]]:
        if not size_bytes:
            return Content(0, ()), []
        segment, worker = secrets.token_hex(8), self.random.choice(sorted(self.workers))
        self.segments[segment] = self.random.randbytes(size_bytes)
        return Content(size_bytes, (Extent(0, size_bytes, segment=segment),)), [Segment(segment, worker, size_bytes)]

    def bytes_of(self, content: Content) -> bytes:
        return b"".join(bytes(each) for each in self.read("data", content.extents))

    def read(self, dataset: str, extents: Sequence[Extent], ufs: Any = None) -> list[Buffer]:
        found: list[Buffer] = []
        for extent in extents:
            if extent.segment:
                found.append(self.segments[extent.segment][extent.offset : extent.offset + extent.length])
            elif extent.path:
                found.append((ufs or self.ufs.ufs).get(extent.path, extent.offset, extent.length, extent.etag))
            else:
                found.append(bytes(extent.length))
        return found

    # What must hold.

    def check_tree(self) -> None:
        """Each file can be read, all the time."""
        for path, data in self.files.items():
            _, content = self.tree.content(("data", path))
            assert self.bytes_of(content) == data, path

    def finish(self) -> None:
        self.ufs.rate = 0.0
        for _ in range(400):
            self.now_ns += 40 * SECOND_NS
            for worker in self.workers.values():
                worker.step(faults=False)
            behind = self.handout.behind([("data", "")])
            if not behind.paths:
                break
        assert not behind.paths, behind
        found = {}
        for batch in self.ufs.ufs.list_tree(""):
            for row in batch.to_pylist():
                if not row["is_dir"]:
                    path = row["name"].decode()
                    found[path] = bytes(self.ufs.ufs.get(path, 0, row["size_bytes"], row["etag"].decode()))
        assert found == self.files
        self.check_tree()


class Worker:
    """One worker: some of what it was given it does, the rest later, or never as it dies."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        self.starts = itertools.count()
        self.start()

    def start(self) -> None:
        self.process, self.turn = f"p{next(self.starts)}", 0
        self.held: list[Task] = []
        self.heard_ns = 0
        self.outcomes: list[Outcome] = []

    def step(self, faults: bool = True) -> None:
        random = self.run.random
        if faults and random.random() < 0.1:
            self.start()
        if self.run.now_ns - self.heard_ns > BEGIN_S * SECOND_NS:
            self.held = []
        self.turn += 1
        at = [task.key for task in self.held]
        tasks = self.run.handout.exchange(self.name, self.process, self.turn, self.outcomes, at, 4 - len(self.held))
        if faults and random.random() < 0.1:
            return  # the answer was lost: all is told again
        self.outcomes, self.heard_ns = [], self.run.now_ns
        self.held += tasks
        random.shuffle(self.held)
        count = random.randrange(len(self.held) + 1) if faults else len(self.held)
        for _ in range(count):
            task = self.held.pop()
            if task.kind == "keep":
                self.outcomes.append(self.keep(task))
                continue
            read: Callable[..., list[Buffer]] = lambda dataset, extents: self.run.read(dataset, extents, self.run.ufs)  # noqa: E731
            self.outcomes.append(carry_out(task, self.run.ufs, read))  # type: ignore[arg-type]

    def keep(self, task: Task) -> Outcome:
        about, segment, end = (task.seq, task.dataset, task.path), secrets.token_hex(8), 0
        assert task.content is not None
        try:
            found = self.run.read("data", task.content.extents, self.run.ufs)
        except RaycacheError as error:
            return Outcome(*about, LATER, error=str(error))
        self.run.segments[segment] = b"".join(bytes(each) for each in found)
        extents = []
        for extent in task.content.extents:
            extents.append(Extent(extent.at, extent.length, segment=segment, offset=end))
            end += extent.length
        return Outcome(*about, DONE, content=Content(end, tuple(extents)), mark=KEPT)


@pytest.mark.parametrize("kind", ["local", "memory", "fsspec"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_source_ends_up_with_what_the_tree_has(
    kind: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock of this run is not that of the source.
    monkeypatch.setattr(carrying, "CLOCKS_NS", 10**19)
    run = Run(kind, seed, tmp_path)
    for _ in range(STEPS):
        run.step()
        run.check_tree()
    run.finish()
    run.catalog.close()
