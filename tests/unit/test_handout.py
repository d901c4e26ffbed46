"""Handing out what the source has not got yet: order, leases, failures, what is set aside."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from written import FILE, ROOT, Cache, segment_content

from raycache.core.inode import EXCHANGE, Content, Extent
from raycache.core.persisting import CONFLICT, DONE, KEPT, LATER, REFUSED, Outcome, Task, relocated
from raycache.errors import Changed
from raycache.meta.handout import AWAY_NS, BACKOFF_MAX_NS, LEASE_NS, Handout

START_NS = 10**19 // 4
"""Later than everything that was left alone for a while."""


class Worker:
    """What a worker says to the master."""

    def __init__(self, handout: Handout, name: str = "worker", process: str = "p1") -> None:
        self.handout, self.name, self.process = handout, name, process
        self.turn = 0
        self.at: dict[tuple[str, str], Task] = {}

    def ask(self, want: int = 100, *outcomes: Outcome) -> list[str]:
        """What it gets, as words."""
        for outcome in outcomes:
            del self.at[outcome.dataset, outcome.path]
        self.turn += 1
        tasks = self.handout.exchange(self.name, self.process, self.turn, outcomes, list(self.at), want)
        self.at.update({task.key: task for task in tasks})
        return [f"{task.kind} {task.path}" for task in tasks]

    def outcome(self, path: str, result: str = DONE, etag: str = "", error: str = "") -> Outcome:
        task = self.at["data", path]
        put = task.content if result == DONE else None
        return Outcome(task.seq, "data", path, result, etag, error, put, task.tried[-1].mark if task.tried else "")

    def done(self, *paths: str) -> list[Outcome]:
        return [self.outcome(path, etag=f"put-{path}") for path in paths]


class Clock:
    now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "source")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def handout(cache: Cache, clock: Clock) -> Handout:
    return Handout(cache.catalog, clock, Random(1))


@pytest.fixture
def worker(handout: Handout) -> Worker:
    return Worker(handout)


def put(cache: Cache, path: str, size_bytes: int = 10, segment: str = "") -> int:
    above, _, name = path.rpartition("/")
    content, segments = segment_content(segment or f"s-{path}", size_bytes)
    return cache.tree.put(("data", above), name.encode(), 0o644, content, segments, 5).ino


def test_nothing_is_put_over_while_it_is_copied_from(cache: Cache, worker: Worker) -> None:
    put(cache, "x")
    assert worker.ask() == ["put x"]
    worker.ask(0, *worker.done("x"))
    cache.tree.rename(ROOT, b"x", ROOT, b"y")
    put(cache, "x", segment="new")
    assert worker.ask() == ["put y"]
    assert worker.at["data", "y"].origin == ("x", "put-x")
    assert worker.ask() == [], "a copy of what is put there now would be another file's"
    assert worker.ask(100, *worker.done("y")) == ["put x"]
    put(cache, "z", segment="other")
    worker.ask(0, *worker.done("x"))
    assert worker.ask() == ["put z"]


def test_nothing_is_copied_from_what_is_being_put_over(cache: Cache, worker: Worker) -> None:
    put(cache, "x")
    worker.ask()
    worker.ask(0, *worker.done("x"))
    cache.tree.link(("data", "x"), ROOT, b"kept")
    cache.tree.unlink(ROOT, b"x")
    put(cache, "x", segment="new")
    with cache.catalog.transaction() as db:  # as if its turn had come first
        db.execute("UPDATE pending SET lease = 'other:p', not_before_ns = 1 << 62 WHERE path = X'78'")
    assert worker.ask() == ["put kept"]
    assert worker.at["data", "kept"].origin is None


def test_puts_go_side_by_side_and_deletions_wait_for_them(cache: Cache, worker: Worker) -> None:
    put(cache, "x")
    put(cache, "y")
    cache.tree.unlink(ROOT, b"a")
    cache.tree.unlink(ROOT, b"b")
    put(cache, "z")
    assert worker.ask(1) == ["put x"]
    assert worker.ask() == ["put y"]
    assert worker.ask(100, *worker.done("x")) == []
    assert worker.ask(100, *worker.done("y")) == ["delete a", "delete b"]
    assert worker.ask(100, worker.outcome("a")) == []
    assert worker.ask(100, worker.outcome("b")) == ["put z"]
    assert worker.ask(100, *worker.done("z")) == []
    assert cache.pending() == []
    assert cache.rows("SELECT path, etag FROM persisted") == [(b"x", "put-x"), (b"y", "put-y"), (b"z", "put-z")]


def test_a_task_says_what_is_to_be_there_and_what_is_there(cache: Cache, worker: Worker) -> None:
    etag = cache.etag("a")
    put(cache, "a", 7)
    worker.ask()
    task = worker.at["data", "a"]
    assert (task.base_etag, task.content) == (etag, Content(7, (Extent(0, 7, segment="s-a"),)))
    assert [attempt.size_bytes for attempt in task.tried] == [7]
    assert task.origin is None


def test_a_change_meanwhile_stays_behind_and_follows_what_was_put(cache: Cache, worker: Worker) -> None:
    put(cache, "x", 1)
    worker.ask()
    put(cache, "x", 2)
    assert worker.ask() == []  # two puts of one path side by side could end in the wrong order
    assert worker.ask(100, *worker.done("x")) == ["put x"]
    task = worker.at["data", "x"]
    assert (task.base_etag, task.content and task.content.size_bytes) == ("put-x", 2)


def test_what_is_removed_while_it_is_put_is_deleted_afterwards(cache: Cache, worker: Worker) -> None:
    put(cache, "x")
    worker.ask()
    cache.tree.unlink(ROOT, b"x")
    assert worker.ask() == []
    assert worker.ask(100, *worker.done("x")) == ["delete x"]
    assert worker.at["data", "x"].base_etag == "put-x"


def test_only_the_worker_with_the_bytes_puts_them(cache: Cache, handout: Handout, worker: Worker) -> None:
    put(cache, "x")
    cache.tree.mknod(ROOT, b"empty", FILE, 0, 0, 0)
    other = Worker(handout, "other")
    assert other.ask() == ["put empty"]
    assert worker.ask() == ["put x"]


def test_the_tasks_of_a_silent_worker_go_to_another_one(cache: Cache, handout: Handout, clock: Clock) -> None:
    cache.tree.mknod(ROOT, b"empty", FILE, 0, 0, 0)
    one, two = Worker(handout, "one"), Worker(handout, "two")
    assert one.ask() == ["put empty"]
    mark = one.at["data", "empty"].tried[-1].mark
    for _ in range(3):  # for as long as it calls it keeps what it is at
        clock.now_ns += LEASE_NS * 2 // 3
        assert (one.ask(), two.ask()) == ([], [])
    clock.now_ns += LEASE_NS + 1
    assert two.ask() == ["put empty"]
    assert two.at["data", "empty"].tried[-1].mark == mark
    one.ask(0, one.outcome("empty", LATER, error="late"))  # is not heard
    assert cache.rows("SELECT lease, error FROM pending") == [("two:p1", "")]


def test_a_worker_that_starts_again_gets_at_once_what_it_was_at(cache: Cache, handout: Handout, worker: Worker) -> None:
    put(cache, "x")
    assert worker.ask() == ["put x"]
    assert Worker(handout, process="p2").ask() == ["put x"]


def test_an_answer_that_was_lost_is_free_again_with_the_next_call(cache: Cache, worker: Worker) -> None:
    put(cache, "x")
    assert worker.ask() == ["put x"]
    worker.at.clear()
    assert worker.ask() == ["put x"]
    worker.turn -= 1  # a call that comes late changes nothing
    assert worker.ask() == []


def test_a_source_that_is_away_is_asked_seldom_and_never_given_up(cache: Cache, worker: Worker, clock: Clock) -> None:
    for number in range(20):
        put(cache, f"x{number}")
    given = worker.ask(10)
    assert len(given) == 10
    assert worker.ask(10, *[worker.outcome(key[1], LATER, error="away") for key in list(worker.at)]) == []
    for _ in range(200):
        clock.now_ns += BACKOFF_MAX_NS
        (one,) = worker.ask(10)  # one that finds out whether it is there again
        assert worker.ask(10, worker.outcome(one.split()[1], LATER, error="away")) == []
    clock.now_ns += BACKOFF_MAX_NS
    (one,) = worker.ask(10)
    assert len(worker.ask(10, *worker.done(one.split()[1]))) == 10


def test_nothing_waits_for_what_was_refused(cache: Cache, worker: Worker, clock: Clock) -> None:
    put(cache, "x")
    cache.tree.unlink(ROOT, b"a")
    worker.ask()
    assert worker.ask(100, worker.outcome("x", REFUSED, error="no such bucket")) == ["delete a"]
    worker.ask(100, worker.outcome("a"))
    clock.now_ns += BACKOFF_MAX_NS
    assert worker.ask() == ["put x"]
    assert worker.ask(100, *worker.done("x")) == []


def test_conflicts_are_kept_shown_and_decided_by_somebody(
    cache: Cache, handout: Handout, worker: Worker, clock: Clock
) -> None:
    put(cache, "sub/c")
    worker.ask()
    worker.ask(100, worker.outcome("sub/c", CONFLICT, etag="theirs", error="somebody else put it"))
    clock.now_ns += 10 * BACKOFF_MAX_NS
    assert worker.ask() == []
    behind = handout.status()["data"]
    assert (behind.files, behind.conflicts, behind.size_bytes) == (1, 1, 10)
    assert [(each.path, each.error, each.conflict) for each in behind.troubles] == [
        ("sub/c", "somebody else put it", True)
    ]
    assert handout.overwrite("data", "nothing") == 0
    assert handout.overwrite("data", "sub") == 1
    assert worker.ask() == ["put sub/c"]
    assert worker.at["data", "sub/c"].base_etag == "theirs"


def test_nothing_waits_for_a_worker_that_is_away(cache: Cache, handout: Handout, worker: Worker, clock: Clock) -> None:
    put(cache, "x")
    cache.tree.unlink(ROOT, b"a")
    other = Worker(handout, "other")
    assert other.ask() == []
    clock.now_ns += AWAY_NS + 1
    assert other.ask() == ["delete a"]
    assert "is away" in handout.status()["data"].troubles[0].error
    assert other.ask(100, other.outcome("a")) == []
    assert worker.ask() == ["put x"]
    assert handout.status()["data"].troubles == ()


def test_a_moved_file_is_copied_inside_the_source_and_deleted_after_that(cache: Cache, worker: Worker) -> None:
    etag = cache.etag("a")
    put(cache, "x")
    worker.ask()
    worker.ask(0, *worker.done("x"))
    cache.tree.rename(ROOT, b"a", ROOT, b"moved")
    cache.tree.rename(ROOT, b"x", ROOT, b"y")
    assert worker.ask() == ["put moved"]
    assert worker.at["data", "moved"].origin == ("a", etag)
    assert worker.ask(100, *worker.done("moved")) == ["delete a"]
    assert worker.ask(100, worker.outcome("a")) == ["put y"]
    assert worker.at["data", "y"].origin == ("x", "put-x")
    _, content = cache.tree.content(("data", "moved"))
    assert content.extents == (Extent(0, 10, path="moved", etag="put-moved"),)


def keep(worker: Worker, path: str, segment: str) -> Outcome:
    """What a worker says that has kept bytes."""
    task = worker.at["data", path]
    assert task.kind == "keep"
    assert task.content is not None
    extents = [each._replace(segment=segment, path="", etag="") for each in task.content.extents]
    return Outcome(task.seq, "data", path, DONE, content=Content(0, tuple(extents)), mark=KEPT)


def test_what_files_are_made_of_is_kept_before_it_is_put_over(cache: Cache, worker: Worker) -> None:
    etag = cache.etag("a")
    clone = Content(10, (Extent(0, 10, path="a", etag=etag),))
    cache.tree.put(ROOT, b"clone", 0o644, clone, [], 5, "cache")
    put(cache, "a", 3)
    assert worker.ask() == ["keep a"]
    assert worker.at["data", "a"].content == Content(10, (Extent(0, 10, path="a", etag=etag),))
    assert worker.ask(100, keep(worker, "a", "kept")) == ["put a"]
    assert cache.tree.content(("data", "clone"))[1].extents == (Extent(0, 10, segment="kept"),)
    assert cache.rows("SELECT * FROM segments WHERE segment = 'kept'") == [("kept", "worker", 10)]


def test_what_files_are_to_be_put_from_waits_for_them(cache: Cache, worker: Worker, clock: Clock) -> None:
    clone = Content(10, (Extent(0, 10, path="a", etag=cache.etag("a")),))
    cache.tree.put(ROOT, b"clone", 0o644, clone, [], 5)
    put(cache, "a", 3)
    cache.tree.unlink(ROOT, b"b")
    assert worker.ask() == ["put clone"]
    assert worker.ask(100, worker.outcome("clone", REFUSED, error="not allowed")) == ["delete b"]
    assert "waits for clone" in {each.path: each.error for each in worker.handout.status()["data"].troubles}["a"]
    clock.now_ns += BACKOFF_MAX_NS
    assert worker.ask(100, worker.outcome("b")) == ["put clone"]
    worker.ask(0, *worker.done("clone"))
    clock.now_ns += BACKOFF_MAX_NS
    assert worker.ask() == ["put a"]


def test_what_changes_places_is_kept_once(cache: Cache, worker: Worker) -> None:
    cache.tree.rename(ROOT, b"a", ROOT, b"b", EXCHANGE)
    assert worker.ask() == ["keep b"]
    assert worker.ask(100, keep(worker, "b", "kept")) == ["put b"]
    assert worker.ask(100, *worker.done("b")) == ["put a"]


def test_a_file_that_was_moved_away_and_back_is_there(cache: Cache, worker: Worker) -> None:
    cache.tree.rename(ROOT, b"a", ROOT, b"x")
    cache.tree.rename(ROOT, b"x", ROOT, b"a")
    assert worker.ask() == []
    assert cache.pending() == []


def test_a_writer_that_began_before_a_put_loses_nothing(cache: Cache, worker: Worker) -> None:
    etag = cache.etag("a")
    content, segments = segment_content("s", 4)
    changed = Content(10, (*content.extents, Extent(4, 6, path="a", offset=4, etag=etag)))
    ino = cache.tree.commit(("data", "a"), changed, segments, 5).ino
    assert worker.ask() == ["keep a"]
    assert worker.ask(100, keep(worker, "a", "kept")) == ["put a"]
    now = (Extent(0, 4, segment="s"), Extent(4, 6, segment="kept", offset=4))
    assert cache.tree.content(ino)[1].extents == now
    cache.tree.commit(ino, changed, [], 6)
    assert cache.tree.content(ino)[1].extents == now
    clone = Content(6, (Extent(0, 6, path="a", offset=4, etag=etag),))
    with pytest.raises(Changed, match="read them again"):
        cache.tree.put(ROOT, b"clone", 0o644, clone, [], 5)


def test_directories_go_when_they_are_empty(cache: Cache, worker: Worker, clock: Clock) -> None:
    cache.tree.remove_tree(("data", "sub"))
    assert worker.ask() == ["delete sub/c", "delete sub/deep/d"]
    assert worker.ask(100, worker.outcome("sub/c"), worker.outcome("sub/deep/d")) == ["rmdir sub/deep"]
    assert worker.ask(100, worker.outcome("sub/deep")) == ["rmdir sub"]
    assert worker.ask(100, worker.outcome("sub")) == []
    assert cache.pending() == []


def test_new_files_are_left_alone_for_a_while_unless_somebody_waits(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "source")
    now_ns = cache.rows("SELECT CAST((julianday('now') - 2440587.5) * 86400e9 AS INTEGER)")[0][0]
    handout = Handout(cache.catalog, lambda: now_ns, Random(1))
    worker = Worker(handout)
    put(cache, "tmp")
    put(cache, "other")
    cache.tree.rename(ROOT, b"tmp", ROOT, b"final")
    assert cache.pending() == [("put", "other", ""), ("put", "final", "")]
    assert worker.ask() == []
    assert handout.wait([("data", "final")], 0).files == 1
    assert worker.ask() == ["put other", "put final"]  # what was written before it must not come after it
    assert handout.wait([("data", "nothing")], 9).paths == 0


@pytest.mark.parametrize(
    ("extent", "expected"),
    [
        (Extent(0, 10, path="a", offset=0, etag="e"), [Extent(5, 5, path="n", offset=20, etag="new")]),
        (Extent(0, 3, path="a", offset=6, etag="e"), [Extent(0, 3, path="n", offset=21, etag="new")]),
        (Extent(0, 3, path="a", offset=6, etag="other"), [Extent(0, 3, path="a", offset=6, etag="other")]),
        (Extent(0, 3, segment="s"), [Extent(0, 3, segment="s")]),
        (Extent(0, 3), [Extent(0, 3)]),
    ],
)
def test_relocation(extent: Extent, expected: list[Extent]) -> None:
    put = Content(40, (Extent(20, 5, path="a", offset=5, etag="e"), Extent(30, 5, segment="s")))
    kept = [] if extent.length != 10 else [Extent(0, 5, path="a", offset=0, etag="e")]
    assert relocated([extent], put, "n", "new") == kept + expected
