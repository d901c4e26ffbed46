"""Programs with unchanged URIs, through the cache."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import ray.data
import s3fs

import raycache
from raycache.data.sourcefs import SourceFileSystem
from raycache.errors import InvalidInput
from raycache.testing import ObjectStoreServer

BUCKET = "unchanged"
TABLES = f"s3://{BUCKET}/known/tables"
OTHER = f"s3://{BUCKET}/other"


@pytest.fixture(scope="module")
def cache(ray_address: str, object_store: ObjectStoreServer) -> Iterator[ObjectStoreServer]:
    """A cache, and a bucket with a part that is a dataset and another that is none."""
    object_store.create_bucket(BUCKET)
    client = object_store.client()
    for number in range(4):
        table = io.BytesIO()
        pq.write_table(pa.table({"number": [number, number + 10]}), table)
        client.put_object(Bucket=BUCKET, Key=f"known/tables/{number}.parquet", Body=table.getvalue())
    for place in ("known", "other"):
        client.put_object(Bucket=BUCKET, Key=f"{place}/words.csv", Body=b"word\nhello\n")
    with pytest.MonkeyPatch.context() as patch:
        settings = {"RAYCACHE_NAMESPACE": "test-enabling", "RAYCACHE_ADDRESS": ray_address}
        for name, value in {**object_store.environ, **settings}.items():
            patch.setenv(name, value)
        raycache.disconnect()
        raycache.dataset("known", f"s3://{BUCKET}/known")
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield object_store
        raycache.shutdown()


@pytest.fixture
def enabled(cache: ObjectStoreServer) -> Iterator[ObjectStoreServer]:
    """This process is enabled."""
    raycache.data.enable()
    yield cache
    raycache.data.disable()
    fsspec.filesystem("s3").clear_instance_cache()


def reads() -> int:
    """Blocks and ranges that workers were asked for."""
    return int(raycache.status()["totals"]["reads"])


def numbers(dataset: Any) -> list[int]:
    return sorted(row["number"] for row in dataset.take_all())


def test_ray_data_reads_what_is_known_through_the_cache(enabled: ObjectStoreServer) -> None:
    assert numbers(ray.data.read_parquet(TABLES)) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert ray.data.read_csv(f"s3://{BUCKET}/known/words.csv").take_all() == [{"word": "hello"}]
    asked = raycache.status()["totals"]["ufs_requests"]
    assert reads() > 0
    files = ray.data.read_binary_files(TABLES, include_paths=True).take_all()
    assert sorted(row["path"] for row in files) == [f"{BUCKET}/known/tables/{number}.parquet" for number in range(4)]
    assert numbers(ray.data.read_parquet([f"{TABLES}/{number}.parquet" for number in (3, 1)])) == [1, 3, 11, 13]
    assert raycache.status()["totals"]["ufs_requests"] == asked


def test_pyarrow_and_pandas_too(enabled: ObjectStoreServer) -> None:
    assert pyarrow.dataset.dataset(TABLES).count_rows() == 8
    assert pq.read_table(f"{TABLES}/2.parquet")["number"].to_pylist() == [2, 12]
    asked = reads()
    assert pd.read_csv(f"s3://{BUCKET}/known/words.csv").word.tolist() == ["hello"]
    with fsspec.open(f"s3://{BUCKET}/known/words.csv", "rb") as file:
        assert file.read() == b"word\nhello\n"
    assert reads() > asked
    filesystem, path = pyarrow.fs.FileSystem.from_uri(f"fsspec+{TABLES}")
    assert isinstance(filesystem.handler.fs, SourceFileSystem)
    assert filesystem.get_file_info(path).type == pyarrow.fs.FileType.Directory


def test_what_no_dataset_has_and_what_is_written_goes_where_it_always_went(enabled: ObjectStoreServer) -> None:
    filesystem, path = fsspec.url_to_fs(f"{OTHER}/words.csv")
    assert (type(filesystem), path) == (s3fs.S3FileSystem, f"{BUCKET}/other/words.csv")
    assert filesystem.cat_file(path) == b"word\nhello\n"
    assert isinstance(filesystem, fsspec.get_filesystem_class("s3"))
    assert type(fsspec.filesystem("s3")) is s3fs.S3FileSystem
    asked = reads()
    known, path = fsspec.url_to_fs(f"s3://{BUCKET}/known/new.csv", anon=False)
    assert known.cat_file(f"{BUCKET}/other/words.csv") == b"word\nhello\n"
    assert [known.info(f"{BUCKET}/other/words.csv")["size"], known.exists(path)] == [11, False]
    with known.open(path, "wb") as file:
        file.write(b"word\nnew\n")
    assert enabled.client().get_object(Bucket=BUCKET, Key="known/new.csv")["Body"].read() == b"word\nnew\n"
    assert reads() == asked
    raycache.refresh("raycache://known")
    assert known.cat_file(path) == b"word\nnew\n"
    assert known.ls(f"{BUCKET}/known", detail=False) == [f"{BUCKET}/known/{name}" for name in
                                                         ("new.csv", "tables", "words.csv")]  # fmt: skip
    known.rm(path)
    assert "new.csv" not in [name.rpartition("/")[2] for name in s3fs.S3FileSystem().ls(f"{BUCKET}/known")]


def test_it_is_pickled_with_its_cache_and_works_where_nothing_is_enabled(enabled: ObjectStoreServer) -> None:
    filesystem, path = fsspec.url_to_fs(f"s3://{BUCKET}/known/words.csv")
    assert pickle.loads(pickle.dumps(filesystem)).cat_file(path) == b"word\nhello\n"

    @ray.remote
    def read() -> Any:
        return filesystem.cat_file(path), fsspec.get_filesystem_class("s3").__module__

    assert ray.get(read.remote(), timeout=60) == (b"word\nhello\n", "s3fs.core")


def test_off_again_and_twice(enabled: ObjectStoreServer) -> None:
    raycache.data.enable()
    raycache.data.disable()
    raycache.data.disable()
    assert fsspec.get_filesystem_class("s3") is s3fs.S3FileSystem
    assert pyarrow.fs._resolve_filesystem_and_path.__module__ == "pyarrow.fs"
    assert pq.core._resolve_filesystem_and_path is pyarrow.fs._resolve_filesystem_and_path
    assert type(fsspec.url_to_fs(TABLES)[0]) is s3fs.S3FileSystem
    with pytest.raises(InvalidInput, match="hdfs: can be enabled for s3"):
        raycache.data.enable(["hdfs"])


def test_any_reader_takes_uris_of_the_cache(enabled: ObjectStoreServer) -> None:
    assert numbers(ray.data.read_parquet("fsspec+raycache://known/tables")) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert ray.data.read_csv("fsspec+raycache://known/words.csv").take_all() == [{"word": "hello"}]


UNCHANGED = f"""
import fsspec, ray
print(ray.data.read_csv("s3://{BUCKET}/known/words.csv").take_all())

@ray.remote
def kind():
    return type(fsspec.url_to_fs("s3://{BUCKET}/known/words.csv")[0]).__mro__[1].__name__

print(ray.get(kind.remote(), timeout=60))
"""


def test_a_program_without_a_line_of_ours(enabled: ObjectStoreServer, ray_address: str) -> None:
    environ = {**os.environ, "RAY_ADDRESS": ray_address, "RAY_RUNTIME_ENV_HOOK": "raycache.data.enable_job"}
    before = reads()
    done = subprocess.run(
        [sys.executable, "-c", UNCHANGED], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[{'word': 'hello'}]\nSourceFileSystem" in done.stdout
    assert reads() > before


def test_another_hook_in_the_way_is_an_error() -> None:
    try:
        assert raycache.data.enable_job({"env_vars": {"A": "1"}}) == {
            "env_vars": {"A": "1"},
            "worker_process_setup_hook": "raycache.data.enable",
        }
        with pytest.raises(InvalidInput, match=r"have it call raycache.data.enable\(\)"):
            raycache.data.enable_job({"worker_process_setup_hook": "theirs.hook"})
    finally:
        raycache.data.disable()
