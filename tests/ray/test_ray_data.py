"""Ray Data over the cache: our own source of whole files, and Ray Data's readers over our file system."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from PIL import Image

import raycache
from raycache.actors.cluster import current
from raycache.client.selection import Selection
from raycache.config import load_settings
from raycache.core.values import Worker
from raycache.data.packs import PackRead, PackSource, Part
from raycache.data.routes import Files
from raycache.errors import InvalidInput, NotFound
from raycache.testing import ObjectStoreServer

BUCKET = "raydata"
FILES = 120


@pytest.fixture(scope="module")
def stored(object_store: ObjectStoreServer) -> dict[str, bytes]:
    """Objects of several kinds by key, as they are in the bucket."""
    rng = random.Random(3)
    made = {f"train/class{number % 3}/{number:04d}.bin": rng.randbytes(rng.randrange(3000)) for number in range(FILES)}
    made["train/large.bin"] = rng.randbytes(300_000)
    made["train/none/empty.bin"] = b""
    for number in range(4):
        image = io.BytesIO()
        Image.fromarray(np.full((6, 5, 3), number, np.uint8)).save(image, "png")
        made[f"images/{number}.png"] = image.getvalue()
        table = io.BytesIO()
        pq.write_table(pa.table({"number": [number, number + 10]}), table)
        made[f"tables/kind={number % 2}/{number}.parquet"] = table.getvalue()
        made[f"texts/{number}.csv"] = f"word,count\na{number},{number}\n".encode()
    object_store.create_bucket(BUCKET)
    client = object_store.client()
    for key, body in made.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=body)
    return made


@pytest.fixture(scope="module")
def cache(ray_address: str, object_store: ObjectStoreServer, stored: dict[str, bytes]) -> Iterator[Any]:
    """A cache with small blocks, so that few files make many packs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**object_store.environ, "RAYCACHE_NAMESPACE": "test-data", "RAYCACHE_ADDRESS": ray_address,
                            "RAYCACHE_BLOCK_BYTES": "20000"}.items():  # fmt: skip
            patch.setenv(name, value)
        raycache.disconnect()
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield current(load_settings())
        raycache.shutdown()


def below(stored: dict[str, bytes], prefix: str) -> dict[str, bytes]:
    return {key.removeprefix(prefix): body for key, body in stored.items() if key.startswith(prefix)}


def rows(dataset: Any) -> dict[str, bytes]:
    found = [(row["path"], row["bytes"]) for row in dataset.take_all()]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_whole_files_are_read_once_and_the_second_time_from_the_cache(cache: Any, stored: dict[str, bytes]) -> None:
    dataset = raycache.data.read_files(f"s3://{BUCKET}/train")
    assert dataset.count() == FILES + 2
    assert rows(dataset) == below(stored, "train/")
    before = raycache.status()["totals"]["ufs_requests"]
    assert rows(raycache.data.read_files(f"s3://{BUCKET}/train")) == below(stored, "train/")
    assert raycache.status()["totals"]["ufs_requests"] == before


def test_a_pattern_a_limit_and_the_columns_of_ray_data(cache: Any, stored: dict[str, bytes]) -> None:
    some = raycache.data.read_files(f"s3://{BUCKET}/train/class1", pattern="00[0-3]*")
    assert rows(some) == {path: body for path, body in below(stored, "train/class1/").items() if path < "004"}
    plain = raycache.data.read_binary_files(f"s3://{BUCKET}/train", pattern="large.bin").take_all()
    assert plain == [{"bytes": stored["train/large.bin"]}]
    assert len(raycache.data.read_files(f"s3://{BUCKET}/train").limit(7).take_all()) == 7
    assert raycache.data.read_files(f"s3://{BUCKET}/train", pattern="none-of-them").count() == 0
    with pytest.raises(NotFound):
        raycache.data.read_files("raycache://nobody/a")
    with pytest.raises(InvalidInput):
        raycache.data.read_files(f"s3://{BUCKET}/train", pattern="../*")


def test_what_ray_data_reads_by_itself_it_reads_through_the_cache(cache: Any, stored: dict[str, bytes]) -> None:
    images = raycache.data.read_images(f"s3://{BUCKET}/images").take_all()
    assert sorted(int(row["image"].max()) for row in images) == [0, 1, 2, 3]
    tables = raycache.data.read_parquet(f"s3://{BUCKET}/tables")
    assert sorted(row["number"] for row in tables.take_all()) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert {(row["number"] % 2, str(row["kind"])) for row in tables.take_all()} == {(0, "0"), (1, "1")}
    words = raycache.data.read_csv([f"s3://{BUCKET}/texts/{number}.csv" for number in (2, 0)])
    assert sorted(row["word"] for row in words.take_all()) == ["a0", "a2"]


def test_any_reader_takes_our_file_system(cache: Any, stored: dict[str, bytes]) -> None:
    raycache.dataset("whole", f"s3://{BUCKET}")
    for uri in ("raycache://whole/texts", "whole/texts"):
        found = ray.data.read_text(uri, filesystem=raycache.filesystem()).take_all()
        assert len([row for row in found if row["text"] != "word,count"]) == 4
    read = ray.data.read_binary_files("raycache://whole/texts/1.csv", filesystem=raycache.filesystem()).take_all()
    assert [row["bytes"] for row in read] == [stored["texts/1.csv"]]


def test_a_snapshot_is_read_by_every_task(cache: Any, object_store: ObjectStoreServer) -> None:
    object_store.create_bucket("growing")
    client = object_store.client()
    client.put_object(Bucket="growing", Key="grows/old", Body=b"old")
    then = raycache.data.read_files("s3://growing/grows")
    change = raycache.snapshot().change
    client.put_object(Bucket="growing", Key="grows/new", Body=b"new")
    raycache.refresh("s3://growing/grows")
    assert rows(then) == {"old": b"old"}
    assert rows(raycache.data.read_files("s3://growing/grows")) == {"old": b"old", "new": b"new"}
    assert rows(raycache.data.read_files("s3://growing/grows", change=change)) == {"old": b"old"}
    assert raycache.data.read_text("s3://growing/grows", change=change).take_all() == [{"text": "old"}]


@pytest.mark.parametrize("parallelism", [1, 3, 1000])
def test_tasks_have_every_file_once_and_whole_packs(cache: Any, parallelism: int) -> None:
    files = Files.select(f"s3://{BUCKET}/train")
    tasks = PackSource(files, PackRead(files.wanted, (), True)).get_read_tasks(parallelism)
    assert len(tasks) <= parallelism
    assert sum(task.metadata.num_rows for task in tasks) == len(files)
    assert sum(task.metadata.size_bytes for task in tasks) == files.selection.size_bytes
    found = [path for task in tasks for table in task.read_fn() for path in table["path"].to_pylist()]
    assert sorted(found) == sorted(files.paths(np.arange(len(files))))
    seen: set[tuple[int, int]] = set()
    for task in tasks:
        packs = {
            (part.dir_id, block) for part in task.read_fn.parts for block, _ in packs_of(files, part, task.read_fn)
        }
        assert not packs & seen, "no pack is in two tasks"
        seen |= packs


def packs_of(files: Files, part: Part, read: PackRead) -> list[tuple[int, Any]]:
    manifest = next(one for one in files.selection.manifests if one.directory.dir_id == part.dir_id)
    return list(read.packs_of(manifest, part.rows))


def test_each_pack_is_read_by_the_worker_that_owns_it_and_by_no_other(cache: Any) -> None:
    files = Files.select(f"s3://{BUCKET}/train")
    workers = [Worker(name, capacity) for name, capacity in (("a", 1), ("b", 2), ("c", 1))]
    shares = {}
    for worker in workers:
        source = PackSource(files, PackRead(files.wanted, (), True, worker.worker_id, tuple(workers)))
        tables = [table for task in source.get_read_tasks(4) for table in task.read_fn()]
        shares[worker.worker_id] = [path for table in tables for path in table["path"].to_pylist()]
        assert source.estimate_inmemory_data_size() == files.selection.size_bytes * worker.capacity_bytes // 4
    read = [path for share in shares.values() for path in share]
    assert sorted(read) == sorted(files.paths(np.arange(len(files))))
    assert all(shares.values())


def test_reads_of_several_workers_are_united_and_go_elsewhere_where_a_node_is_gone(
    cache: Any, stored: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = cache.pool.workers()[0]
    gone = replace(mine, worker_id="gone", node_id="0" * 56)
    monkeypatch.setattr(cache.pool, "workers", lambda refresh=False: [mine, gone])
    assert rows(raycache.data.read_files(f"s3://{BUCKET}/train")) == below(stored, "train/")


def test_rows_of_a_part() -> None:
    whole, some = np.arange(3, 9, dtype=np.uint32), np.array([3, 5, 6], np.uint32)
    assert Part.of(1, whole).picked is None
    for wanted in (whole, some):
        assert Part.of(1, wanted).rows.tolist() == wanted.tolist()
    assert Selection([]).size_bytes == 0
