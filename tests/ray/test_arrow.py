"""The Arrow file system: pyarrow's datasets and tables, read without a copy, written and seen as a whole."""

from __future__ import annotations

import gc
import os
import pickle
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector, FileSystem, FileType

import raycache
from raycache.errors import InvalidInput, IsADirectory, NotADirectory, NotFound, ReadOnly


@pytest.fixture
def fs(connected: Path) -> FileSystem:
    return raycache.data.arrow_filesystem()


@pytest.fixture
def base(fs: FileSystem) -> str:
    """A directory of its own."""
    path = f"data/{uuid.uuid4().hex[:8]}"
    fs.create_dir(path)
    return path


def test_files_are_written_and_read(fs: FileSystem, base: str) -> None:
    data = os.urandom(1_000_000)
    with fs.open_output_stream(f"{base}/a/file") as file:
        file.write(data)
    with fs.open_append_stream(f"{base}/a/file") as file:
        file.write(b"more")
    assert fs.get_file_info(f"{base}/a/file").size == 1_000_004
    with fs.open_input_stream(f"{base}/a/file") as file:
        assert file.read() == data + b"more"
    with fs.open_input_file(f"{base}/a/file") as file:
        assert file.size() == 1_000_004
        assert file.read_at(10, 500_000) == data[500_000:500_010]
        file.seek(-4, 2)
        assert (file.read(100), file.tell()) == (b"more", 1_000_004)
    raycache.write_many({f"raycache://{base}/small": b"small", f"raycache://{base}/empty": b""})
    with fs.open_input_file(f"raycache://{base}/small") as file:
        assert file.read_buffer(2).to_pybytes() == b"sm"
    with fs.open_input_file(f"{base}/empty") as file:
        assert file.read() == b""


@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_what_is_mapped_is_not_copied(fs: FileSystem, base: str, size: int) -> None:
    data = os.urandom(size)
    uri = f"raycache://{base}/file"
    raycache.write_many({uri: data})
    raycache.load(uri).wait(60)
    (view,) = raycache.read_many([uri])
    before = pa.total_allocated_bytes()
    with fs.open_input_file(f"{base}/file") as file:
        buffer = file.read_buffer(size)
    assert buffer.address == pa.py_buffer(view).address
    assert pa.total_allocated_bytes() == before
    with pytest.raises(TypeError):
        memoryview(buffer)[0] = 0
    assert buffer.to_pybytes() == data


def test_directories(fs: FileSystem, base: str) -> None:
    fs.create_dir(f"{base}/a/b", recursive=True)
    fs.create_dir(f"{base}/a/b")
    with pytest.raises(NotFound):
        fs.create_dir(f"{base}/x/y", recursive=False)
    raycache.write_many({f"raycache://{base}/{name}": b"x" for name in ("a/1", "a/b/2", "c/3", "4")})

    def names(path: str, **options: bool) -> list[tuple[str, bool]]:
        found = fs.get_file_info(FileSelector(path, **options))
        return sorted((each.path.removeprefix(f"{base}/"), each.type == FileType.Directory) for each in found)

    assert names(base) == [("4", False), ("a", True), ("c", True)]
    found = names(base, recursive=True)
    assert [name for name, _ in found] == ["4", "a", "a/1", "a/b", "a/b/2", "c", "c/3"]
    assert [name for name, is_dir in found if is_dir] == ["a", "a/b", "c"]
    assert names(f"{base}/none", allow_not_found=True) == []
    with pytest.raises(NotFound):
        names(f"{base}/none")
    with pytest.raises(NotADirectory):
        names(f"{base}/4")
    infos = fs.get_file_info([f"{base}/4", f"{base}/a", f"{base}/none", f"{base}/4/x"])
    assert [each.type for each in infos] == [FileType.File, FileType.Directory, FileType.NotFound, FileType.NotFound]
    assert infos[0].mtime_ns
    fs.move(f"{base}/a", f"{base}/d")
    fs.copy_file(f"{base}/d/b/2", f"{base}/5")
    fs.delete_file(f"{base}/4")
    assert names(base) == [("5", False), ("c", True), ("d", True)]
    with pytest.raises(IsADirectory):
        fs.delete_file(f"{base}/d")
    with pytest.raises(NotADirectory):
        fs.delete_dir(f"{base}/5")
    fs.delete_dir_contents(f"{base}/d")
    fs.delete_dir_contents(f"{base}/none", missing_dir_ok=True)
    with pytest.raises(NotFound):
        fs.delete_dir_contents(f"{base}/none")
    assert names(f"{base}/d") == []
    fs.delete_dir(f"{base}/d")
    assert names(base) == [("5", False), ("c", True)]
    with pytest.raises(InvalidInput):
        fs.delete_dir_contents("", accept_root_dir=True)
    with pytest.raises(InvalidInput):
        fs.get_file_info(FileSelector(""))


def test_partitions_of_a_dataset(fs: FileSystem, base: str) -> None:
    table = pa.table({"day": ["a", "b", "a", "c"], "hour": [1, 1, 2, 2], "value": [1.0, 2.0, 3.0, 4.0]})
    hive = ds.partitioning(pa.schema([("day", pa.string()), ("hour", pa.int64())]), flavor="hive")
    ds.write_dataset(table, f"{base}/table", filesystem=fs, format="parquet", partitioning=hive)
    again = ds.dataset(f"{base}/table", filesystem=fs, partitioning=hive)
    assert again.to_table(columns=table.column_names).sort_by("value") == table
    assert again.to_table(filter=ds.field("day") == "a").num_rows == 2
    assert sorted(raycache.listdir(f"raycache://{base}/table")) == ["day=a", "day=b", "day=c"]
    replaced = table.set_column(2, "value", pa.array([5.0, 6.0, 7.0, 8.0])).filter(pa.array([True, False, True, False]))
    ds.write_dataset(
        replaced, f"{base}/table", filesystem=fs, format="parquet", partitioning=hive,
        existing_data_behavior="delete_matching",
    )  # fmt: skip
    values = ds.dataset(f"{base}/table", filesystem=fs, partitioning=hive).to_table().sort_by("value")["value"]
    assert values.to_pylist() == [2.0, 4.0, 5.0, 7.0]
    pq.write_to_dataset(table, f"raycache://{base}/other", partition_cols=["day"], filesystem=fs)
    assert pq.read_table(f"{base}/other", filesystem=fs).num_rows == 4


def test_a_table_that_could_not_be_written_is_not_seen(fs: FileSystem, base: str) -> None:
    def batches(fail: bool) -> object:
        yield pa.record_batch({"a": [1, 2, 3]})
        if fail:
            raise RuntimeError
        yield pa.record_batch({"a": [4]})

    schema = pa.schema([("a", pa.int64())])
    with pytest.raises(RuntimeError):
        ds.write_dataset(batches(True), f"{base}/table", filesystem=fs, format="parquet", schema=schema)
    gc.collect()
    left = fs.get_file_info(FileSelector(f"{base}/table", recursive=True, allow_not_found=True))
    assert [each for each in left if each.is_file] == []
    ds.write_dataset(batches(False), f"{base}/table", filesystem=fs, format="parquet", schema=schema)
    assert ds.dataset(f"{base}/table", filesystem=fs).count_rows() == 4


def test_pandas(fs: FileSystem, base: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": range(1000), "b": ["x"] * 1000})
    frame.to_parquet(f"{base}/frame", filesystem=fs, partition_cols=["b"])
    again = pandas.read_parquet(f"{base}/frame", filesystem=fs, columns=["a"])
    pandas.testing.assert_frame_equal(again, frame[["a"]])


def test_a_pickled_one_is_of_the_same_cache(fs: FileSystem, base: str, connected: Path) -> None:
    through = pickle.loads(pickle.dumps(raycache.data.arrow_filesystem(write_type="through")))
    with through.open_output_stream(f"{base}/file") as file:
        file.write(b"x")
    assert (connected / base.partition("/")[2] / "file").read_bytes() == b"x"
    assert through != fs
    assert pickle.loads(pickle.dumps(fs)) == fs
    view = raycache.data.arrow_filesystem(snapshot=raycache.snapshot().change)
    with view.open_input_file(f"{base}/file") as file:
        assert file.read() == b"x"
    with pytest.raises(ReadOnly):
        view.create_dir(f"{base}/dir")
