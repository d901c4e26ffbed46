"""When a client asks a second worker because the first is slow, and how often it may."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from raycache.client import asking
from raycache.client.hedging import BURST, LEARNED_MIN, LOSSES, ROUND_S, SHARE, SHORTEST_S, USUAL_TIMES, Hedging, Usual
from raycache.errors import Unavailable
from raycache.testing.inprocess import InProcessCache

KIB = 2**10


def test_what_is_usual_follows_the_calls() -> None:
    usual, draw = Usual(), random.Random(1)
    times = [draw.lognormvariate(-2, 0.5) for _ in range(4000)]  # a median of 0.135 s
    for took_s in times:
        usual.learn(took_s)
    truth = sorted(times)[int(0.95 * len(times))]
    assert usual.slow_s == pytest.approx(USUAL_TIMES * truth, rel=0.5)
    for _ in range(200):
        usual.learn(10 * truth)
    assert usual.slow_s > 5 * USUAL_TIMES * truth, "where all are slow, none is"


def test_nothing_is_slow_before_enough_is_known_and_never_within_the_shortest_time() -> None:
    hedging = Hedging()
    for _ in range(LEARNED_MIN):
        assert hedging.slow_s(KIB) is None
        hedging.answered("a", KIB, 1e-4)
    assert hedging.slow_s(KIB) == SHORTEST_S
    assert hedging.slow_s(100 * KIB**2) is None, "of large calls nothing is known"


def test_calls_made_again_are_a_small_share_of_all() -> None:
    hedging = Hedging()
    for _ in range(10_000):
        hedging.begun()
        hedging.allow()
    assert hedging.hedges <= BURST + SHARE * 10_000
    assert hedging.hedges >= SHARE * 10_000 - 1


def test_a_worker_that_keeps_losing_is_gone_round_for_a_while() -> None:
    hedging = Hedging()
    for _ in range(LOSSES - 1):
        hedging.beaten("a", KIB, 1, now=0)
    hedging.answered("a", KIB, 1)
    for _ in range(LOSSES - 1):
        hedging.beaten("a", KIB, 1, now=0)
    assert not hedging.is_gone_round("a", now=0), "it answered in between"
    hedging.beaten("a", KIB, 1, now=0)
    assert hedging.is_gone_round("a", now=ROUND_S - 0.1)
    assert not hedging.is_gone_round("b", now=0)
    assert not hedging.is_gone_round("a", now=ROUND_S + 0.1)
    hedging.keep({"b"})
    assert not hedging.is_gone_round("a", now=0)


@pytest.fixture
def cache(tmp_path: Path) -> InProcessCache:
    for number in range(64):
        (tmp_path / f"{number:02d}").write_bytes(bytes([number]) * 1000)
    with InProcessCache(workers=3, block_bytes=1000, view_bytes=0) as cache:
        cache.files.attach(str(tmp_path), "data", {})
        yield cache


def test_a_worker_that_does_not_answer_is_gone_round_and_nothing_is_kept_elsewhere(cache: InProcessCache) -> None:
    names = [f"raycache://data/{number:02d}" for number in range(64)]
    expected = [bytes([number]) * 1000 for number in range(64)]
    assert [bytes(cache.files.read_range(name, 0, 1000)) for name in names] == expected
    cache.pool.slow["worker-1"] = threading.Event()
    blocks = {name: store.status()["blocks"] for name, store in cache.pool.stores.items()}
    assert [bytes(cache.files.read_range(name, 0, 1000)) for name in names] == expected
    hedging = cache.reader.asker.hedging
    assert LOSSES <= hedging.won <= hedging.hedges <= BURST, "then it was not asked any more"
    assert {name: store.status()["blocks"] for name, store in cache.pool.stores.items()} == blocks
    assert sum(store.status()["counters"]["hedged"] for store in cache.pool.stores.values()) >= hedging.hedges


def test_a_call_that_was_lost_is_made_again_though_nothing_is_known_of_calls(
    cache: InProcessCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "SILENT_SHARE", 0.01)
    for name in ("worker-0", "worker-1"):
        cache.pool.slow[name] = threading.Event()
    assert bytes(cache.files.read_range("raycache://data/07", 0, 1000)) == bytes([7]) * 1000


def test_a_batch_of_silent_workers_ends_by_one_deadline(cache: InProcessCache, monkeypatch: pytest.MonkeyPatch) -> None:
    asker = cache.reader.asker
    monkeypatch.setattr(asking, "GRACE_S", 0.1)
    monkeypatch.setattr(asker, "_timeout_s", 0.3)
    monkeypatch.setattr(cache.reader, "_timeout_s", 0.3)
    for number in range(3):
        cache.pool.slow[f"worker-{number}"] = threading.Event()
    begun = asker.clock()
    with pytest.raises(Unavailable, match="no worker answered"):
        cache.files.read_many([f"raycache://data/{number:02d}" for number in range(64)])
    assert asker.clock() - begun < 2
