"""Results of a transformation are computed once for each pack, and again only for what changed."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data

import raycache
from raycache.actors.cluster import current
from raycache.config import load_settings
from raycache.errors import InvalidInput, RaycacheError

FILES, FILE_BYTES, BLOCK_BYTES = 60, 2000, 10_000
PACKS = FILES * FILE_BYTES // BLOCK_BYTES


@pytest.fixture(scope="module")
def cache(ray_address: str) -> Iterator[Any]:
    """A cache with small blocks, so that few files make many packs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYCACHE_NAMESPACE", "test-cached")
        patch.setenv("RAYCACHE_ADDRESS", ray_address)
        patch.setenv("RAYCACHE_BLOCK_BYTES", str(BLOCK_BYTES))
        raycache.disconnect()
        ray.data.DataContext.get_current().enable_progress_bars = False
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # tasks cannot import it
        yield current(load_settings())
        raycache.shutdown()


@pytest.fixture
def source(cache: Any, tmp_path: Path) -> Path:
    """Files in two directories, which are a dataset by the name of the directory."""
    root = tmp_path / f"s{uuid.uuid4().hex[:8]}"
    for number in range(FILES):
        path = root / f"{number % 2}" / f"{number:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * FILE_BYTES)
    raycache.dataset(root.name, str(root))
    return root


def counting(calls: Path, factor: int, batch: dict[str, Any]) -> dict[str, Any]:
    """Notes in a directory that it was called, in whatever process."""
    (calls / uuid.uuid4().hex).touch()
    return {"path": batch["path"], "value": np.array([each[0] * factor for each in batch["bytes"]])}


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    (tmp_path / "calls").mkdir()
    return tmp_path / "calls"


@pytest.fixture
def computed(calls: Path) -> Callable[[], int]:
    """How often it was called since this was asked last."""

    def count() -> int:
        names = os.listdir(calls)
        for name in names:
            (calls / name).unlink()
        return len(names)

    return count


def results(dataset: Any) -> dict[str, int]:
    rows = dataset.take_all()
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row["value"] for row in rows}


def wanted(factor: int) -> dict[str, int]:
    return {f"{number % 2}/{number:02d}": number * factor for number in range(FILES)}


def test_each_pack_is_computed_once_and_again_when_a_file_of_it_changes(
    source: Path, calls: Path, computed: Callable[[], int]
) -> None:
    to = f"raycache://{source.name}/_made"
    transform = partial(counting, calls, 2)
    dataset = raycache.data.cached(str(source), transform, to)
    assert results(dataset) == wanted(2)
    assert computed() == PACKS
    assert results(dataset) == wanted(2), "another epoch"
    assert computed() == 0
    assert results(raycache.data.cached(f"raycache://{source.name}", transform, to)) == wanted(2), "another job"
    assert computed() == 0

    (source / "0" / "10").write_bytes(b"\xff" * FILE_BYTES)
    (source / "1" / "new").write_bytes(b"\1" * FILE_BYTES)
    raycache.refresh(f"raycache://{source.name}", recursive=True)
    changed = raycache.data.cached(str(source), transform, to)
    assert results(changed) == {**wanted(2), "0/10": 510, "1/new": 2}
    assert 1 <= computed() <= 3
    assert results(dataset) == wanted(2), "as of when it was made"
    assert computed() == 0

    assert results(raycache.data.cached(str(source), partial(counting, calls, 3), to, pattern="0/*")).keys() == {
        path for path in wanted(3) if path.startswith("0/")
    }
    assert PACKS // 2 <= computed() <= PACKS // 2 + 1, "other code, other results"
    assert len(raycache.listdir(to)) == 2


def test_a_key_stands_for_the_code_and_a_class_is_made_once_in_a_process(
    source: Path, calls: Path, computed: Callable[[], int]
) -> None:
    class Model:
        def __init__(self) -> None:
            (calls / uuid.uuid4().hex).touch()

        def __call__(self, table: Any) -> Any:
            return table.drop_columns(["bytes"]).append_column("value", [[self.value] * len(table)])

        value = 7

    to = f"raycache://{source.name}/_made"
    dataset = raycache.data.cached(str(source), Model, to, key="model 1", batch_format="pyarrow", concurrency=1)
    assert set(results(dataset).values()) == {7}
    assert 1 <= computed() <= 2, "as many as there are processes"
    Model.value = 8
    again = raycache.data.cached(str(source), Model, to, key="model 1", batch_format="pyarrow")
    assert set(results(again).values()) == {7}
    assert computed() == 0
    other = raycache.data.cached(str(source), Model, to, key="model 2", batch_format="pyarrow")
    assert set(results(other).values()) == {8}


def test_what_fails_leaves_no_result_and_the_rest_is_kept(
    source: Path, calls: Path, computed: Callable[[], int]
) -> None:
    (calls / "broken").touch()
    broken = calls / "broken"

    def fails(batch: dict[str, Any]) -> dict[str, Any]:
        if broken.exists() and "0/20" in batch["path"]:
            raise ValueError("cannot be decoded")
        return counting(calls, 2, batch)

    to = f"raycache://{source.name}/_made"
    dataset = raycache.data.cached(str(source), fails, to, override_num_blocks=1)
    with pytest.raises(Exception, match="cannot be decoded"):
        dataset.take_all()
    (made,) = raycache.listdir(to)
    raycache.refresh(f"{to}/{made}")  # another process wrote there
    kept = len(raycache.listdir(f"{to}/{made}"))
    assert kept == 2, "those before it"
    broken.unlink()
    computed()
    assert results(dataset) == wanted(2)
    assert computed() == PACKS - kept


def test_reading_a_few_rows_leaves_whole_results_only(source: Path, calls: Path) -> None:
    to = f"raycache://{source.name}/_made"
    dataset = raycache.data.cached(str(source), partial(counting, calls, 2), to)
    assert len(dataset.take(3)) == 3
    assert results(dataset) == wanted(2)


def test_what_cannot_be_meant_is_refused_before_anything_is_made(source: Path) -> None:
    to = f"raycache://{source.name}/_made"
    lock = current(load_settings()).namespace  # of which nothing can be said
    for arguments, message in (
        ({"transform": 3}, "cannot be called"),
        ({"batch_format": "torch"}, "batch_format"),
        ({"transform": lambda batch: lock}, "give a key"),
        ({"to": "raycache://no-such-dataset/made"}, "no-such-dataset"),
    ):
        given = {"transform": len, "to": to, **arguments}
        with pytest.raises(RaycacheError, match=message):
            raycache.data.cached(str(source), **given)
    assert not raycache.exists(to)
    with pytest.raises(InvalidInput, match="pattern"):
        raycache.data.cached(str(source), len, to, pattern="../*")
