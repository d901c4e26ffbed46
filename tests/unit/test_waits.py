"""What readers waited for: counting it, the table of it, and the sentence that is made of it. No Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycache.client.waiting import NAMES_MAX, WaitLog, job_name
from raycache.core.waits import (
    FILE,
    NODE,
    SOURCE,
    VIEW,
    WORKER,
    ReaderName,
    ReaderWaits,
    Wait,
    WaitTable,
    explain,
)
from raycache.errors import NotFound
from raycache.testing.inprocess import InProcessCache


def told(rank: int | None, *waits: Wait, worker: int | None = None, epoch: int | None = 2, job: str = "j",
         process: str = "p", until: float = 60.0) -> ReaderWaits:  # fmt: skip
    return ReaderWaits(ReaderName(job, rank, worker, epoch), process, 0.0, until, waits)


def waited(kind: str, seconds: float, reads: int = 100, size_bytes: int = 1000, where: str = "") -> Wait:
    return Wait("train", kind, where, reads, size_bytes, seconds)


def sentence(*readers: ReaderWaits) -> str:
    return explain(readers).sentence


def test_the_rank_that_stands_out_is_named_with_what_it_waited_for() -> None:
    usual = [told(rank, waited(VIEW, 0, 900), waited(WORKER, 8 + rank)) for rank in range(3)]
    slow = told(3, waited(SOURCE, 36, size_bytes=6000), waited(NODE, 4, where="abcdef0123"), waited(VIEW, 0, 300, 3000),
                worker=1)  # fmt: skip
    assert sentence(*usual, slow) == (
        "Rank 3 (worker 1) waited 40.0 s of 60.0 s in epoch 2, 4.4 times as long as the median of the others (9.0 s): "
        "36.0 s for the source of train (60% of its bytes); 4.0 s for worker abcdef01 (10% of its bytes); "
        "300 of its 500 reads were of memory that it had mapped; to spare that, `raycache load train` before, and look "
        "at `raycache status` for room."
    )


def test_where_none_stands_out_it_says_so() -> None:
    ranks = [told(rank, waited(FILE, 5 + rank / 10)) for rank in range(3)]
    assert sentence(*ranks) == (
        "None stands out: they waited 5.0 s to 5.2 s in epoch 2. Rank 2 waited 5.2 s of 60.0 s in epoch 2: 5.2 s for "
        "the disks of its node (100% of its bytes); 0 of its 100 reads were of memory that it had mapped; more memory "
        "(mem) would spare that."
    )
    assert sentence(told(0, waited(WORKER, 0.1)), told(1, waited(WORKER, 0.9))).startswith("None stands out"), (
        "so little"
    )


def test_a_rank_is_as_slow_as_its_slowest_worker() -> None:
    readers = [told(rank, waited(NODE, seconds, where="w"), worker=worker) for rank, worker, seconds in
               ((0, 0, 1.0), (0, 1, 9.0), (1, 0, 5.0), (1, 1, 5.0))]  # fmt: skip
    assert sentence(*readers).startswith("Rank 0 (worker 1) waited 9.0 s of 60.0 s in epoch 2, 1.8 times as long")


def test_readers_without_ranks_or_waits() -> None:
    alone = told(None, waited(VIEW, 0.0), epoch=None)
    assert sentence(alone) == (
        "The reader waited 0.0 s of 60.0 s: 100 of its 100 reads were of memory that it had mapped."
    )
    other = told(None, waited(WORKER, 3.0), epoch=None, process="q")
    assert sentence(alone, other).startswith(
        "The slowest reader waited 3.0 s of 60.0 s, much longer than the median of the others (0.0 s)"
    )


def test_which_job_and_epoch() -> None:
    old = told(0, waited(SOURCE, 1), job="old", until=10)
    first, second = told(0, waited(SOURCE, 2), epoch=0), told(0, waited(SOURCE, 3), epoch=1)
    other = ReaderWaits(ReaderName("other", 0, None, 0), "p", 0, 99, (Wait("val", FILE, "", 1, 1, 4.0),))
    known = [old, first, second, other]
    assert explain(known).job == "other", "the last"
    assert (explain(known, "j").epoch, explain(known, "j").readers) == (1, (second,))
    assert explain(known, "train").job == "j", "the last that read the dataset"
    assert explain(known, "j", 0).readers == (first,)
    assert explain(known, "old").readers == (old,)
    with pytest.raises(NotFound, match="no reader of nobody has told what it waited for; jobs that did: j, old, other"):
        explain(known, "nobody")
    with pytest.raises(NotFound, match=r"job j told of no epoch 7; it did of \[0, 1\]"):
        explain(known, "j", 7)
    with pytest.raises(NotFound, match="jobs that did: none"):
        explain([])
    found = json.loads(json.dumps(explain(known, "j").as_json()))
    assert (found["job"], found["epoch"], found["readers"][0]["rank"], found["readers"][0]["waited_s"]) == (
        "j",
        1,
        0,
        3,
    )
    assert found["readers"][0]["waits"][0] == {
        "dataset": "train", "kind": "source", "where": "", "reads": 100, "size_bytes": 1000, "seconds": 3
    }  # fmt: skip


def test_the_table_keeps_the_newest_of_each_and_so_many() -> None:
    table = WaitTable(kept=2)
    table.note([told(0, waited(FILE, 1)), told(1)])
    table.note([told(0, waited(FILE, 5))])
    table.note([told(2)])
    assert [(each.reader.rank, each.seconds) for each in table.all()] == [(0, 5.0), (2, 0)]


def test_a_log_counts_under_the_name_that_it_has_and_tells_what_is_new() -> None:
    heard: list[ReaderWaits] = []
    now = [100.0]
    log = WaitLog("j", heard.extend, clock=lambda: now[0])
    log.tell()
    assert heard == []
    log.begin(ReaderName("j", 1, 0, 5))
    now[0] = 103.0
    for _ in range(2):
        log.add("train", FILE, "", 10, 1000, 1.5)
    log.tell()
    log.tell()
    (first,) = heard
    assert (first.reader.epoch, first.since, first.until) == (5, 100.0, 103.0)
    assert first.waits == (Wait("train", FILE, "", 20, 2000, 3.0),)
    log.begin(ReaderName("j", 1, 0, 6))
    log.begin(ReaderName("j", 1, 0, 5))
    log.add("train", FILE, "", 1, 1, 0.5)
    log.tell()
    assert [each.seconds for each in heard] == [3.0, 3.5], "an epoch that is gone on with"
    for epoch in range(2 * NAMES_MAX):
        log.begin(ReaderName("j", 1, 0, 100 + epoch))
    log.begin(ReaderName("j", 1, 0, 5))
    log.add("train", FILE, "", 1, 1, 0.5)
    log.tell()
    assert heard[-1].seconds == 0.5, "it was forgotten meanwhile"


def test_what_reads_wait_for(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02d}").write_bytes(bytes([number]) * 1000)
    with InProcessCache(block_bytes=5000) as cache:
        cache.files.attach(str(tmp_path), "train", {})
        names = [f"raycache://train/{number:02d}" for number in range(20)]
        counted: dict[str, tuple[int, int]] = {}
        cache.reader.waits._tell = lambda news: counted.update(
            {wait.kind: (wait.reads, wait.size_bytes) for each in news for wait in each.waits}
        )
        cache.files.read_many(names)
        cache.reader.waits.tell()
        assert counted[SOURCE] == (20, 20_000)
        assert all(store.settle(10) for store in cache.pool.stores.values())
        cache.files.read_many(names)
        cache.files.read_many(names)
        cache.reader.waits.tell()
        assert counted[SOURCE] == (20, 20_000)
        assert counted[VIEW][0] >= 20, "the second time at the latest"
        assert counted[WORKER][0] + counted[VIEW][0] == 40


def test_names_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAYCACHE_JOB", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert job_name("04000000") == "04000000"
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "")
    assert job_name("04000000") == "77"
    monkeypatch.setenv("RAYCACHE_JOB", "nightly")
    assert job_name("04000000") == "nightly"
