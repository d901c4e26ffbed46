"""Recursive listings: all or nothing, resumed where they stopped, never over something newer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from listings import Entry, listing_of

from raycache.core.values import ListingJob
from raycache.errors import ClusterUnavailable, NotADirectory, NotFound, SourceUnavailable, Unavailable
from raycache.meta import treelisting
from raycache.meta.catalog import Catalog
from raycache.meta.staging import RESUME_NS
from raycache.meta.treelisting import JOBS, TreeListings
from raycache.testing.inprocess import InProcessCache

BATCH_ROWS = 2
DEADLINE_S = 10


class Tree:
    """A source in memory, and the Sources that lead to it. ``files``: path to version."""

    def __init__(self, *names: str) -> None:
        self.files = dict.fromkeys(names, "v1")
        self.extra: list[Entry] = []
        """Rows that a listing of all that is below ``top`` has besides."""
        self.asked: list[str] = []
        """Paths of which a listing was begun."""
        self.complete: set[str] = set()
        self.on_batch: Callable[[str, int], None] = lambda path, number: None
        """Called before each batch of a tree; may wait, or raise."""
        self.on_level: Callable[[str], None] = lambda path: None
        self.progress = threading.Condition()

    def call(self, dataset: str, use: Callable[[Any], Any]) -> Any:
        return use(self)

    def list_tree(self, path: str, threads: int) -> Generator[pa.RecordBatch, None, None]:
        self.asked.append(path)
        rows = [Entry(name.encode(), size=1, etag=etag) for name, etag in self._below(path).items()]
        rows += self.extra if path == "top" else []
        for number, start in enumerate(range(0, len(rows), BATCH_ROWS)):
            self.on_batch(path, number)
            yield listing_of(rows[start : start + BATCH_ROWS])
        with self.progress:
            self.complete.add(path)
            self.progress.notify_all()

    def list_directory(self, path: str) -> pa.RecordBatch:
        self.asked.append(path)
        self.on_level(path)
        below = self._below(path)
        directories = {name.partition("/")[0] for name in below if "/" in name}
        rows = [Entry(name.encode(), size=1, etag=etag) for name, etag in below.items() if "/" not in name]
        return listing_of(rows + [Entry(name.encode(), True) for name in sorted(directories)])

    def stat(self, path: str) -> None:
        self.on_level(path)

    def await_complete(self, *paths: str) -> None:
        """Wait until these have been listed to their ends."""
        with self.progress:
            assert self.progress.wait_for(lambda: self.complete.issuperset(paths), DEADLINE_S)

    def _below(self, path: str) -> dict[str, str]:
        prefix = f"{path}/" if path else ""
        return {name[len(prefix) :]: etag for name, etag in self.files.items() if name.startswith(prefix)}


class Master:
    """Recursive listings of one source, and what readers see."""

    def __init__(self, tree: Tree, part_rows: int = 1 << 18, catalog: Path | str = ":memory:") -> None:
        self.now_ns = 1000
        self.tree = tree
        self.catalog = Catalog.open(catalog)
        self.root_id = self.catalog.add_dataset("data", "s3://bucket", 1).root_id
        self.part_rows = part_rows
        self.restart()

    def restart(self) -> None:
        """Another master over the same catalog."""
        self.listings = TreeListings(self.catalog, self.tree, 100, self._tick, self.part_rows)  # type: ignore[arg-type]

    def _tick(self) -> int:
        self.now_ns += 1
        return self.now_ns

    def refresh(self) -> ListingJob:
        return self.wait(self.listings.start(self.root_id))

    def wait(self, job_id: int) -> ListingJob:
        for _ in range(DEADLINE_S):
            if (job := self.listings.job(job_id, 1)).state != "running":
                return job
        raise AssertionError("the job does not end")

    def shown(self) -> dict[str, str]:
        """Path to version of each file, from what is published alone."""
        found: dict[str, str] = {}
        waiting = [self.root_id]
        while waiting:
            manifest = self.catalog.manifest(waiting.pop())
            if manifest is None:
                continue
            for row in manifest.rows():
                if (child := manifest.child_id(row)) is not None:
                    waiting.append(child)
                else:
                    found[manifest.path(row)] = manifest.etag(row)
        return found

    def dir_id(self, path: str) -> int:
        return self.catalog.number_directories("data", [path])[0]


NAMES = [f"{directory}/{number}" for directory in "abc" for number in range(5)] + ["p/f", "q/f", "r/f", "top"]
"""Directories enough to list each of them whole."""


def fail_in_c(tree: Tree) -> None:
    """Let the listing of ``c`` fail at its second batch, after ``a`` and ``b`` have been listed."""
    tree.complete.clear()

    def fail(path: str, number: int) -> None:
        if path == "c" and number == 1:
            tree.await_complete("a", "b")
            raise SourceUnavailable("s3://bucket/c: no answer")

    tree.on_batch = fail


@pytest.mark.parametrize("part_rows", [3, 6, 1 << 18])
def test_a_tree_is_published_as_a_whole(part_rows: int) -> None:
    tree = Tree(*NAMES, "deep/1/2/3/4/f", "d/x/y", "d/x/z")
    master = Master(tree, part_rows)
    job = master.refresh()
    assert (job.state, job.files, job.directories, job.changed) == ("done", len(tree.files), 14, 14)
    assert master.shown() == tree.files
    assert master.catalog.changes(0) == (0, []), "nothing that anybody could have held"
    again = master.refresh()
    assert (again.state, again.files, again.directories, again.changed) == ("done", len(tree.files), 14, 0)


def test_changes_tell_of_every_directory_that_changed_and_of_no_other() -> None:
    tree = Tree(*NAMES)
    master = Master(tree, part_rows=6)
    master.refresh()
    tree.files.pop("a/1")
    tree.files["b/2"] = "v2"
    tree.files["new/1/f"] = "v1"
    job = master.refresh()
    assert (job.state, job.changed) == ("done", 5), "a, b, the top, and two new ones"
    assert master.shown() == tree.files
    newest, changed = master.catalog.changes(0)
    assert sorted(changed) == sorted([master.root_id, master.dir_id("a"), master.dir_id("b")])
    tree.files["c/1"] = "v2"
    master.refresh()
    assert master.catalog.changes(newest)[1] == [master.dir_id("c")]


def test_a_failure_half_way_publishes_nothing_and_the_next_goes_on_there() -> None:
    tree = Tree(*NAMES)
    master = Master(tree, part_rows=6)
    master.refresh()
    before = dict(tree.files)
    tree.files |= {"a/1": "v2", "c/1": "v2", "top": "v2"}
    fail_in_c(tree)
    job = master.refresh()
    assert (job.state, job.error_kind, job.error) == ("failed", "SourceUnavailable", "s3://bucket/c: no answer")
    assert job.files >= 10, "what is staged is shown"
    assert master.shown() == before
    assert master.catalog.changes(0) == (0, [])
    assert master.listings.jobs("data")[0] == job

    tree.on_batch = lambda path, number: None
    tree.asked.clear()
    again = master.refresh()
    assert (again.job_id, again.state, again.error, again.changed) == (job.job_id, "done", "", 3)
    assert not {"a", "b"} & set(tree.asked), "what was staged is not listed again"
    assert "c" in tree.asked
    assert master.shown() == tree.files


def test_a_restart_of_the_master_is_a_failure_that_says_so_and_is_resumed() -> None:
    tree = Tree(*NAMES)
    master = Master(tree, part_rows=6)
    fail_in_c(tree)
    job = master.refresh()
    with master.catalog.transaction() as db:  # as a master leaves it that dies
        db.execute("UPDATE listings SET state = 'running', error_kind = '', error = ''")
    master.restart()
    lost = master.listings.job(job.job_id)
    assert (lost.state, lost.error_kind) == ("failed", ClusterUnavailable.__name__)
    tree.on_batch = lambda path, number: None
    tree.asked.clear()
    assert master.refresh().state == "done"
    assert not {"a", "b"} & set(tree.asked)
    assert master.shown() == tree.files


def test_a_job_that_stopped_long_ago_is_begun_anew() -> None:
    tree = Tree(*NAMES)
    master = Master(tree, part_rows=6)
    fail_in_c(tree)
    job = master.refresh()
    tree.on_batch = lambda path, number: None
    tree.asked.clear()
    master.now_ns += RESUME_NS + 1
    again = master.refresh()
    assert again.job_id != job.job_id
    assert {"a", "b", "c"} <= set(tree.asked)
    assert master.shown() == tree.files


def test_what_left_the_source_between_two_attempts_is_not_published() -> None:
    tree = Tree(*NAMES)
    master = Master(tree, part_rows=6)
    fail_in_c(tree)
    master.refresh()
    for name in list(tree.files):
        if name.startswith("a/"):
            del tree.files[name]
    tree.on_batch = lambda path, number: None
    job = master.refresh()
    assert (job.state, job.files) == ("done", len(tree.files))
    assert master.shown() == tree.files
    assert master.catalog.version(master.dir_id("a")) == 0


def waiting_in_c(tree: Tree) -> tuple[threading.Event, threading.Event]:
    """Let the listing of ``c`` wait for the second event; the first says that it does, and ``a`` and ``b`` are done."""
    reached, go_on = threading.Event(), threading.Event()
    tree.complete.clear()

    def hold(path: str, number: int) -> None:
        if path == "c":
            tree.await_complete("a", "b")
            reached.set()
            assert go_on.wait(DEADLINE_S)

    tree.on_batch = hold
    return reached, go_on


def test_one_job_per_directory_whose_progress_can_be_read_and_that_can_be_cancelled() -> None:
    tree = Tree(*NAMES)
    master = Master(tree, part_rows=6)
    reached, go_on = waiting_in_c(tree)
    job_id = master.listings.start(master.root_id)
    assert reached.wait(DEADLINE_S)
    assert master.listings.start(master.root_id) == job_id
    assert master.listings.job(job_id).state == "running"
    assert master.listings.jobs("data")[0].files >= 11
    master.listings.cancel(job_id)
    job = master.wait(job_id)
    assert job.state == "cancelled", "though its source is silent"
    assert master.shown() == {}
    go_on.set()
    tree.on_batch = lambda path, number: None
    assert master.refresh().job_id == job_id
    assert master.shown() == tree.files
    master.listings.cancel(job_id)  # over: nothing happens
    assert master.listings.job(job_id).state == "done"


def test_only_so_many_jobs_at_once() -> None:
    tree = Tree(*NAMES, *(f"d{number}/f" for number in range(JOBS)))
    master = Master(tree)
    go_on = threading.Event()

    def hold(path: str, number: int) -> None:
        assert go_on.wait(DEADLINE_S)

    tree.on_level = lambda path: hold(path, 0)
    jobs = [master.listings.start(master.dir_id(f"d{number}")) for number in range(JOBS)]
    with pytest.raises(Unavailable, match="under way already"):
        master.listings.start(master.root_id)
    assert master.listings.start(master.dir_id("d0")) == jobs[0], "to join one is no new one"
    go_on.set()
    assert [master.wait(job).state for job in jobs] == ["done"] * JOBS
    assert master.refresh().state == "done"


def test_a_removed_dataset_stays_removed() -> None:
    tree = Tree(*NAMES)
    master = Master(tree, part_rows=6)
    reached, go_on = waiting_in_c(tree)
    job_id = master.listings.start(master.root_id)
    assert reached.wait(DEADLINE_S)
    master.catalog.remove_dataset("data")
    go_on.set()
    with pytest.raises(NotFound):
        master.wait(job_id)
    with master.catalog.transaction() as db:
        for table in ("directories", "manifests", "staged_manifests", "staged_parts", "listings"):
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


def test_a_directory_that_somebody_refreshed_meanwhile_keeps_the_newer_version() -> None:
    tree = Tree(*NAMES)
    master = Master(tree, part_rows=6)
    master.refresh()
    reached, go_on = waiting_in_c(tree)
    tree.files |= {"a/1": "v2", "b/1": "v2"}
    job_id = master.listings.start(master.root_id)
    assert reached.wait(DEADLINE_S)
    # The other refresh, of `a` alone, sees what is newer still.
    other = TreeListings(master.catalog, Tree("a/1", "a/new"), 100, master._tick)  # type: ignore[arg-type]
    while other.job(other_id := other.start(master.dir_id("a")), 5).state == "running":
        pass
    assert other.job(other_id).state == "done"
    go_on.set()
    assert master.wait(job_id).changed == 1, "b"
    assert {path: etag for path, etag in master.shown().items() if path.startswith("a/")} == {
        "a/1": "v1",
        "a/new": "v1",
    }
    assert master.shown()["b/1"] == "v2"


def test_vanished_directories_are_empty_and_files_and_directories_change_places() -> None:
    tree = Tree(*NAMES, "gone/deep/f", "gone/g", "was_file")
    master = Master(tree, part_rows=4)
    master.refresh()
    gone, deep = master.dir_id("gone"), master.dir_id("gone/deep")
    for name in [name for name in tree.files if name.startswith(("gone/", "b/"))] + ["was_file"]:
        del tree.files[name]
    tree.files |= {"was_file/in": "v1", "b": "v1"}
    job = master.refresh()
    assert job.state == "done"
    assert master.shown() == tree.files
    for dir_id in (gone, deep, master.dir_id("b")):
        manifest = master.catalog.manifest(dir_id)
        assert manifest is not None
        assert (manifest.directory.version, manifest.live_count) == (2, 0)
        assert dir_id in master.catalog.changes(0)[1]
    tree.files["gone/g"] = "v3"
    master.refresh()
    assert master.shown() == tree.files
    assert master.dir_id("gone") == gone, "a directory that comes back keeps its number"


def test_twins_and_names_that_cannot_be_shown_are_hidden_and_counted() -> None:
    tree = Tree("top/a", "top/a/f", "top/" + "x" * 255, "top/d/" + "y" * 255, *NAMES[15:18], "s/f", "t/f")
    tree.extra = [
        Entry(b"z" * 256), Entry(b"d/" + b"z" * 300), Entry(b".."), Entry(b"z" * 256 + b"/in"), Entry(b"a/f", size=1),
        Entry(b"d//f"),
    ]  # fmt: skip
    master = Master(tree)
    job = master.refresh()
    assert job.state == "done"
    assert set(master.shown()) == {"top/a/f", "top/" + "x" * 255, "top/d/" + "y" * 255, *NAMES[15:18], "s/f", "t/f"}
    hidden = {path: master.catalog.manifest(master.dir_id(path)) for path in ("top", "top/a", "top/d")}
    assert {path: manifest.directory.hidden for path, manifest in hidden.items() if manifest} == {
        "top": 4,  # the file a behind the directory a; two of 256 bytes, a file and a directory; and `..`
        "top/a": 0,  # the same row twice is one row
        "top/d": 2,
    }


def test_many_small_directories_are_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(treelisting, "PART_COUNT", 20)
    tree = Tree(*(f"{number:03}/f" for number in range(30)), "top")
    master = Master(tree)
    job = master.refresh()
    assert (job.state, job.files, job.directories) == ("done", 31, 31)
    assert master.shown() == tree.files
    assert tree.asked == ["", ""], "one level, and then all of it"
    split = Master(tree, part_rows=10)
    assert split.refresh().files == 31
    assert split.shown() == tree.files


def test_a_directory_deleted_while_its_tree_is_listed_is_left_out_but_a_source_that_is_away_is_an_error() -> None:
    tree = Tree(*NAMES)
    master = Master(tree, part_rows=6)
    away: set[str] = {"c"}

    def missing(path: str, number: int = 0) -> None:
        if path in away:
            raise NotFound(f"s3://bucket/{path}: no such directory")

    tree.on_batch = tree.on_level = missing  # type: ignore[assignment]
    job = master.refresh()
    assert job.state == "done"
    assert set(master.shown()) == {name for name in NAMES if not name.startswith("c/")}
    away = {"c", ""}
    again = master.refresh()
    assert (again.state, again.error_kind) == ("failed", "NotFound")
    assert set(master.shown()) == {name for name in NAMES if not name.startswith("c/")}


def test_the_room_of_what_was_staged_goes_back_to_the_disk(tmp_path: Path) -> None:
    tree = Tree(*(f"{number:02}/{'x' * 200}{file}" for number in range(50) for file in range(20)))
    master = Master(tree, catalog=tmp_path / "catalog.db")
    master.refresh()
    cleared = [thread for thread in threading.enumerate() if thread.name.startswith("listing-")]
    for thread in cleared:
        thread.join(DEADLINE_S)
    with master.catalog.transaction() as db:
        assert db.execute("SELECT count(*) FROM staged_manifests").fetchone() == (0,)
        assert db.execute("PRAGMA freelist_count").fetchone() == (0,)


def test_refresh_of_a_tree_through_a_whole_cache(tmp_path: Path) -> None:
    for name in ("a/1", "a/b/2", "c/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "empty").mkdir()
    with InProcessCache() as cache:
        cache.files.attach(str(tmp_path), "data", {})
        assert cache.refresh_tree("raycache://data").changed == 4, "the top was listed when it was attached"
        asked: list[str] = []
        original = cache.metadata._sources.call
        cache.metadata._sources.call = lambda name, use: asked.append(name) or original(name, use)  # type: ignore[method-assign]
        assert cache.files.listdir("raycache://data/empty") == []
        assert cache.files.glob("raycache://data/**/[0-9]") == [
            f"raycache://data/{name}" for name in ("a/1", "a/b/2", "c/3")
        ]
        assert asked == [], "the source is not asked again"
        (tmp_path / "a/b/2").unlink()
        (tmp_path / "a/b/new").write_bytes(b"new")
        (tmp_path / "c/4").write_bytes(b"4")
        shown: list[ListingJob] = []
        job = cache.refresh_tree("raycache://data/a", shown.append)
        assert (job.path, job.files, job.directories, job.changed) == ("a", 2, 2, 1)
        assert cache.files.listdir("raycache://data/a/b") == ["new"], "this process sees it at once"
        assert cache.files.listdir("raycache://data/c") == ["3"], "and what lies elsewhere is as it was"
        (status,) = cache.metadata.status()
        assert [listing["state"] for listing in status["listings"]] == ["done", "done"]
        with pytest.raises(NotADirectory):
            cache.refresh_tree("raycache://data/a/1")
        (tmp_path / "a/b/new").unlink()
        (tmp_path / "a/b").rmdir()
        (tmp_path / "a/1").unlink()
        (tmp_path / "a").rmdir()
        with pytest.raises(NotFound, match="no such file or directory"):
            cache.refresh_tree("raycache://data/a")


def test_a_plain_refresh_that_a_recursive_one_overtakes_is_published_after_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"f")
    with InProcessCache() as cache:
        root_id = cache.files.attach(str(tmp_path), "data", {}).root_id
        original = cache.metadata._sources.call
        asked: list[str] = []

        def call(dataset: str, use: Callable[[Any], Any]) -> Any:
            listing = original(dataset, use)
            if len(asked) == 0:  # the plain refresh has listed and not published yet
                asked.append("plain")
                (tmp_path / "g").write_bytes(b"g")
                assert cache.refresh_tree("raycache://data").changed == 1
            return listing

        (tmp_path / "other").write_bytes(b"")
        cache.metadata._sources.call = call  # type: ignore[method-assign]
        cache.metadata.refresh(root_id)
        assert cache.files.listdir("raycache://data") == ["f", "g", "other"]
        assert cache.metadata.version(root_id) == 2, "the second attempt found nothing that was not published"


def test_an_interrupt_cancels_the_job_and_a_lost_master_does_not_end_the_refresh(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"f")
    with InProcessCache() as cache:
        cache.files.attach(str(tmp_path), "data", {})
        cancelled: list[int] = []
        answers: list[Any] = ["running", KeyboardInterrupt]

        def answer(job_id: int, wait_s: float) -> ListingJob:
            state = answers.pop(0)
            if not isinstance(state, str):
                raise state
            kind = ClusterUnavailable.__name__ if state == "failed" else ""
            return ListingJob(job_id, "data", "", state, 0, 0, 0, 0, 0, kind)

        cache.master.listing = answer  # type: ignore[method-assign]
        cache.master.cancel_listing = cancelled.append  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            cache.refresh_tree("raycache://data")
        assert len(cancelled) == 1
        original, starts = cache.master.start_listing, []

        def start(dir_id: int) -> int:
            starts.append(original(dir_id))
            if len(starts) == 1:
                raise KeyboardInterrupt  # before the caller learns the number
            return starts[-1]

        cache.master.start_listing = start  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            cache.refresh_tree("raycache://data")
        assert cancelled[1:] == starts[1:]
        answers[:] = ["running", "failed", "running", "done"]
        assert cache.refresh_tree("raycache://data").state == "done"
        answers[:] = ["cancelled"]
        with pytest.raises(Unavailable, match="cancelled"):
            cache.refresh_tree("raycache://data")
        answers[:] = ["failed"] * 5
        with pytest.raises(ClusterUnavailable):
            cache.refresh_tree("raycache://data")
