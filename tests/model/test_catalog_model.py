"""The namespace against a reference tree, with the master dying and restarting between and within any two steps.

Two source directories, each with files and one directory in it. The client is as ours: it asks again, with the same
request id, until it is answered. The model says what must be: each acknowledged change is there and was made once
(versions, change numbers and dataset ids are exactly those of the changes), and what an inode number (directory id and
row) meant to a reader once, it means for ever.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raycache.core.manifest import Manifest
from raycache.core.values import Dataset
from raycache.errors import NotFound
from raycache.meta.catalog import Catalog
from raycache.meta.check import check
from raycache.meta.metadata import Metadata
from raycache.ufs.base import Limits

SOURCES, NAMES, DIRECTORY = ("a", "b"), ("1", "2", "x\ny"), "sub"
GATES = ("before commit", "after commit")
_Result = TypeVar("_Result")


class Killed(BaseException):
    """The master is gone, in the middle of whatever it did."""


class Kill(NamedTuple):
    """At which gate, and how many times it is passed before."""

    gate: str
    passes: int


KILLS = st.lists(st.builds(Kill, st.sampled_from(GATES), st.integers(0, 2)), max_size=2)
SOURCE = st.sampled_from(SOURCES)
PATH = st.sampled_from(["", DIRECTORY])


class CatalogMachine(RuleBasedStateMachine):
    """``files`` is what the sources hold; ``listed`` what each listed directory of each dataset must show."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="raycache-model-"))
        self.catalog: Catalog | None = None
        self.vault: dict[str, str] = {}
        self.ticks, self.requests, self.stamps = itertools.count(1), itertools.count(), itertools.count(10**9)
        self.files: dict[tuple[str, str], dict[str, int]] = {}
        self.datasets: dict[str, Dataset] = {}
        self.listed: dict[tuple[str, str], dict[str, int]] = {}
        self.versions: dict[tuple[str, str], int] = {}
        self.seen: dict[tuple[int, int], tuple[Any, ...]] = {}
        self.ids: set[int] = set()
        self.changes = 0
        self.kills: list[Kill] = []
        self.request: str | None = None
        self.made_of: dict[tuple[str, str], dict[str, int]] | None = None

    @initialize()
    def start(self) -> None:
        for source in SOURCES:
            (self.root / source).mkdir()
            self.files[source, ""] = {}
        self.restart()

    @rule()
    def restart(self) -> None:
        """The old connection is dropped as a killed process drops it; the file is all that is left."""
        if self.catalog is not None:
            self.catalog.close()
        self.catalog = Catalog.open(self.root / "catalog.db", self.gate)
        self.metadata = Metadata(self.catalog, self.vault, Limits(), 1000, lambda: next(self.ticks))

    def gate(self, name: str) -> None:
        if name == "after commit" and self.made_of is None and self.catalog.reply(self.request) is not None:
            self.made_of = {key: dict(files) for key, files in self.files.items()}
        if self.kills and self.kills[0].gate == name:
            kill = self.kills.pop(0)
            if kill.passes == 0:
                raise Killed
            self.kills.insert(0, kill._replace(passes=kill.passes - 1))

    def ask(
        self, kills: list[Kill], verb: Callable[[str], _Result], meanwhile: Callable[[], None] = lambda: None
    ) -> _Result:
        """What a client gets in the end, from as many masters as it takes. ``meanwhile`` the source may change, so that
        a verb that was done and is done again would find something else to do."""
        self.kills, self.made_of = list(kills), None
        self.request = f"request-{next(self.requests)}"
        try:
            while True:
                try:
                    return verb(self.request)
                except Killed:
                    self.restart()
                    meanwhile()
        finally:
            self.kills, self.request = [], None

    @rule(source=SOURCE, path=PATH, name=st.sampled_from(NAMES))
    def write(self, source: str, path: str, name: str) -> None:
        directory = self.root / source / path
        if (source, path) not in self.files:
            directory.mkdir()
            self.files[source, path] = {}
        stamp = next(self.stamps)  # a version of its own for each write, whatever the clock says
        aside = self.root / "aside"
        aside.write_bytes(b"x" * (stamp % 7))
        os.utime(aside, ns=(stamp, stamp))
        os.replace(aside, directory / name)
        self.files[source, path][name] = stamp

    @rule(source=SOURCE, path=PATH, name=st.sampled_from(NAMES))
    def delete(self, source: str, path: str, name: str) -> None:
        if self.files.get((source, path), {}).pop(name, None) is not None:
            (self.root / source / path / name).unlink()

    @rule(source=SOURCE)
    def delete_directory(self, source: str) -> None:
        if self.files.pop((source, DIRECTORY), None) is not None:
            shutil.rmtree(self.root / source / DIRECTORY)

    @rule(source=SOURCE, kills=KILLS)
    def attach(self, source: str, kills: list[Kill]) -> None:
        answer = self.ask(
            kills,
            lambda request: self.metadata.attach(str(self.root / source), source, {}, request),
            lambda: self.write(source, "", "meanwhile"),
        )
        if source in self.datasets:
            assert answer == self.datasets[source]
            return
        assert answer.root_id not in self.ids, "an id that was used before"
        self.datasets[source] = answer
        self.list_in_model(source, "")

    @precondition(lambda self: self.datasets)
    @rule(source=SOURCE, kills=KILLS)
    def remove(self, source: str, kills: list[Kill]) -> None:
        if source not in self.datasets:
            with pytest.raises(NotFound):
                self.metadata.remove(source)
            return
        self.ask(kills, lambda request: self.metadata.remove(source, request))
        del self.datasets[source]
        for key in [key for key in self.listed if key[0] == source]:
            del self.listed[key], self.versions[key]

    @precondition(lambda self: self.datasets)
    @rule(source=SOURCE, path=PATH, kills=KILLS)
    def look(self, source: str, path: str, kills: list[Kill]) -> None:
        """A directory is listed when it is looked at first, and stays as it was listed."""
        dir_id = self.directory_id(source, path)
        if dir_id is None:
            return
        if (source, path) not in self.listed and (source, path) not in self.files:
            with pytest.raises(NotFound):
                self.ask(kills, lambda _: self.metadata.manifest(dir_id))
            return
        manifest = self.ask(kills, lambda _: self.metadata.manifest(dir_id))
        if (source, path) not in self.listed:
            self.list_in_model(source, path)
        self.compare(source, path, manifest)

    @precondition(lambda self: self.datasets)
    @rule(source=SOURCE, path=PATH, kills=KILLS)
    def refresh(self, source: str, path: str, kills: list[Kill]) -> None:
        dir_id = self.directory_id(source, path)
        if dir_id is None:
            return
        if (source, path) not in self.files:
            with pytest.raises(NotFound):
                self.ask(kills, lambda request: self.metadata.refresh(dir_id, request))
            return
        answer = self.ask(
            kills,
            lambda request: self.metadata.refresh(dir_id, request),
            lambda: self.write(source, path, "meanwhile"),
        )
        self.list_in_model(source, path)
        assert answer == self.versions[source, path]

    def directory_id(self, source: str, path: str) -> int | None:
        """As a reader finds it: through the listing of the directory above."""
        if source not in self.datasets:
            return None
        root_id = self.datasets[source].root_id
        if not path:
            return root_id
        root = self.metadata.manifest(root_id)
        row = root.find(path.encode())
        return None if row is None else root.child_id(row)

    def list_in_model(self, source: str, path: str) -> None:
        """What was listed is what there was when the change was committed."""
        files = self.files if self.made_of is None else self.made_of
        now = dict(files[source, path])
        if not path and (source, DIRECTORY) in files:
            now[DIRECTORY] = 0
        before = self.listed.get((source, path))
        self.listed[source, path] = now
        if before is None:
            self.versions[source, path] = 1
        elif before != now:
            self.versions[source, path] += 1
            self.changes += 1

    def compare(self, source: str, path: str, manifest: Manifest) -> None:
        assert manifest.directory.version == self.versions[source, path]
        rows = {manifest.name(row).decode(): row for row in manifest.rows()}
        shown = {name: 0 if manifest.child_id(row) else manifest.mtime_ns(row) for name, row in rows.items()}
        assert shown == self.listed[source, path]
        dir_id = manifest.directory.dir_id
        for row in range(manifest.row_count):
            about = (manifest.name(row), manifest.size(row), manifest.etag(row), manifest.child_id(row), source, path)
            assert self.seen.setdefault((dir_id, row), about) == about
            if (child_id := manifest.child_id(row)) is not None:
                self.ids.add(child_id)
        self.ids.add(dir_id)

    @invariant()
    def everything_acknowledged_is_there_once(self) -> None:
        if self.catalog is None:
            return
        assert {dataset.name: dataset for dataset in self.catalog.datasets()} == self.datasets
        assert set(self.vault) == set(self.datasets)
        for (source, path), version in self.versions.items():
            dir_id = self.catalog.find_directory(source, path)
            assert dir_id is not None
            assert self.catalog.version(dir_id) == version
            manifest = self.catalog.manifest(dir_id)
            assert manifest is not None
            self.compare(source, path, manifest)
        assert self.catalog.changes(0)[0] <= self.changes
        (newest,) = self.catalog._connection.execute("SELECT value FROM counters WHERE name = 'changes'").fetchone()
        assert newest == self.changes

    def teardown(self) -> None:
        if self.catalog is not None:
            self.catalog.close()
            assert check(self.root / "catalog.db").problems == []
        shutil.rmtree(self.root)


TestCatalogModel = CatalogMachine.TestCase
TestCatalogModel.settings = settings(
    max_examples=int(os.environ.get("RAYCACHE_MODEL_EXAMPLES", "50")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)


def test_the_gates_are_passed_by_what_writes_and_only_then(tmp_path: Path) -> None:
    """Else the kills above would fall nowhere."""
    passed: list[str] = []
    catalog = Catalog.open(tmp_path / "catalog.db", passed.append)
    assert (catalog.datasets(), passed) == ([], [])
    catalog.add_dataset("a", "s3://a", 1)
    assert passed == list(GATES)

    def die(gate: str) -> None:
        if gate == "before commit":
            raise Killed

    dying = Catalog.open(tmp_path / "catalog.db", die)
    with pytest.raises(Killed):
        dying.remove_dataset("a", "request")
    assert [dataset.name for dataset in catalog.datasets()] == ["a"]
    with sqlite3.connect(tmp_path / "catalog.db") as db:
        assert db.execute("SELECT count(*) FROM requests").fetchone() == (0,)
    db.close()
