"""Ray Data writes to the cache: seen when all is there, or not at all, and read back with partitions."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
import ray.data

import raycache
from raycache.errors import Exists


@pytest.fixture
def base(connected: Path) -> str:
    """A directory of its own."""
    return f"raycache://data/{uuid.uuid4().hex[:8]}"


def numbers(count: int) -> Any:
    return ray.data.from_items(
        [{"number": each, "kind": "ab"[each % 2]} for each in range(count)], override_num_blocks=2
    )


def test_a_table_is_written_whole_replaced_and_extended(base: str, connected: Path) -> None:
    uri = f"{base}/table"
    raycache.data.write_parquet(numbers(10), uri, partition_cols=["kind"], mode="error")
    assert raycache.listdir(base) == ["table"]
    assert raycache.listdir(uri) == ["kind=a", "kind=b"]
    rows = raycache.data.read_parquet(uri).take_all()
    assert sorted((row["number"], row["kind"]) for row in rows) == [(each, "ab"[each % 2]) for each in range(10)]
    raycache.data.write_parquet(numbers(4), uri, partition_cols=["kind"])
    assert raycache.data.read_parquet(uri).count() == 14
    raycache.data.write_parquet(numbers(3), uri, mode="overwrite")
    assert sorted(row["number"] for row in raycache.data.read_parquet(uri).take_all()) == [0, 1, 2]
    with pytest.raises(Exists):
        raycache.data.write_csv(numbers(3), uri, mode="error")
    raycache.data.write_csv(numbers(3), f"{base}/csv")
    raycache.data.write_json(numbers(3), f"{base}/json")
    assert raycache.data.read_csv(f"{base}/csv").count() == raycache.data.read_json(f"{base}/json").count() == 3


def test_of_what_failed_nothing_is_seen(base: str) -> None:
    uri = f"{base}/table"
    raycache.data.write_parquet(numbers(10), uri)
    before = raycache.listdir(uri)

    def fail(row: dict[str, Any]) -> dict[str, Any]:
        if row["number"] == 7:
            raise RuntimeError("on purpose")
        return row

    for mode in ("append", "overwrite"):
        with pytest.raises(Exception, match="on purpose"):
            raycache.data.write_parquet(numbers(10).map(fail), uri, mode=mode)
    assert raycache.listdir(uri) == before
    assert raycache.listdir(base) == ["table"]
