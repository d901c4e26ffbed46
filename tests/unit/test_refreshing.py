"""Refreshing by itself: who is due when, and what a failure costs."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from raycache.core.retention import Retention
from raycache.core.values import Dataset
from raycache.errors import AccessDenied, InvalidInput, NotFound, SourceUnavailable
from raycache.meta.refreshing import Schedule
from raycache.testing.inprocess import InProcessCache


def dataset(name: str, every_s: float) -> Dataset:
    return Dataset(name, f"s3://{name}", 1, 0, every_s)


def test_a_round_begins_once_in_an_interval() -> None:
    schedule, train = Schedule(), [dataset("train", 10), dataset("never", 0)]
    assert schedule.next(train, 100) is None, "what was just seen was just listed"
    assert schedule.next(train, 109.9) is None
    assert schedule.next(train, 110) == (train[0], 0)
    schedule.refreshed("train", 5)
    assert schedule.next(train, 110) == (train[0], 5)
    schedule.failed("train", 7, SourceUnavailable("away"))
    assert schedule.next(train, 111) == (train[0], 7), "the others go on"
    schedule.finished("train")
    assert schedule.next(train, 119.9) is None
    assert schedule.about("train") == {"refreshed": 1, "refresh_failures": 1, "refresh_error": "away"}
    assert schedule.next(train, 500) == (train[0], 0)
    schedule.finished("train")
    assert schedule.about("train")["refresh_error"] == "", "it works again"
    assert schedule.next(train, 501) is None, "what was missed is not made up for"
    assert schedule.next([dataset("train", 0)], 1000) is None
    assert schedule.about("train")["refreshed"] == 0, "nothing is kept of what is not refreshed"


def test_a_large_dataset_does_not_hold_up_others() -> None:
    schedule, both = Schedule(), [dataset("large", 1), dataset("small", 1)]
    schedule.next(both, 0)
    turns = []
    for number in range(6):
        turn = schedule.next(both, 2)
        assert turn is not None
        turns.append(turn[0].name)
        schedule.refreshed(turn[0].name, number)
    assert turns == ["large", "small"] * 3


def test_what_changed_is_found_by_itself_and_failures_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    with InProcessCache() as cache:
        cache.files.attach(str(tmp_path), "data", {})
        for name in ("a", "b"):
            assert cache.files.listdir(f"raycache://data/{name}") == ["old"]
        assert cache.master.set_refresh("data", 5).refresh_every_s == 5
        refresher = cache.metadata.refresher

        def round_at(now_s: float) -> int:
            steps = 0
            while refresher.step(now_s):
                steps += 1
            return steps

        assert round_at(0) == 0
        (tmp_path / "a" / "new").touch()
        (tmp_path / "c" / "new").touch()
        assert round_at(4) == 0
        assert round_at(5) == 3 + 1, "root, a and b; c was never listed"
        assert cache.namespace.follow(0)[0] == 1
        assert cache.files.listdir("raycache://data/a") == ["new", "old"]
        about = cache.metadata.status()[0]
        assert {name: about[name] for name in about if name not in ("behind", "write_type")} | {"directories": 4} == {
            "name": "data",
            "source": f"file://{tmp_path}",
            "directories": 4,
            "directories_listed": 3,
            "size_bytes": None,
            "listings": [],
            "refresh_every_s": 5.0,
            "retention": Retention().as_json(),
            "pinned_bytes": 0,
            "refreshed": 3,
            "refresh_failures": 0,
            "refresh_error": "",
        }

        (tmp_path / "a" / "new").unlink()
        (tmp_path / "a" / "old").unlink()
        os.rmdir(tmp_path / "a")
        assert round_at(10) == 4
        assert cache.metadata.status()[0]["refresh_failures"] == 0, "a directory that is gone is no failure"

        failing = iter([AccessDenied("expired"), SourceUnavailable("away"), NotFound("no bucket"), ValueError("bug")])
        real = cache.metadata.refresh

        def refresh(dir_id: int) -> int:
            if error := next(failing, None):
                raise error
            return real(dir_id)

        monkeypatch.setattr(refresher, "_refresh", refresh)
        assert (round_at(15), round_at(20)) == (1, 1), "the next directory would fail for the same reason"
        assert round_at(25) == 4, "the root is missing, and then a bug: the others go on all the same"
        about = cache.metadata.status()[0]
        assert (about["refresh_failures"], about["refresh_error"]) == (4, "bug")
        assert round_at(30) == 4
        assert cache.metadata.status()[0]["refresh_error"] == ""
        assert cache.master.set_refresh("data", 0).refresh_every_s == 0
        assert round_at(1000) == 0


@pytest.mark.parametrize("every_s", [-1, 0.5, math.nan, math.inf, True, "5"])
def test_an_interval_that_cannot_be_meant_is_refused(tmp_path: Path, every_s: float) -> None:
    with InProcessCache() as cache:
        cache.files.attach(str(tmp_path), "data", {})
        with pytest.raises(InvalidInput, match="seconds"):
            cache.master.set_refresh("data", every_s)
        with pytest.raises(NotFound, match="other"):
            cache.master.set_refresh("other", 5)
        assert cache.master.datasets()[0].refresh_every_s == 0
