"""What was written gets to its source, whatever the source answers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import pytest

import raycache
from raycache.actors.cluster import current
from raycache.cli.commands import main
from raycache.config import load_settings
from raycache.core.inode import Content, Extent, Segment
from raycache.errors import Changed, InvalidInput, NoSpace, SourceUnavailable
from raycache.testing import CountingProxy, ObjectStoreServer
from raycache.testing.proxy import FAULTS


def write(cache: Any, dataset: str, files: dict[str, bytes], write_type: str = "") -> None:
    """Files as any writer makes them: bytes in a segment, then one verb each."""
    writer = cache.segments.writer()
    for path, data in files.items():
        above, _, name = path.rpartition("/")
        offset = writer.append(data)
        extents = (Extent(0, len(data), writer.segment, offset),) if data else ()
        segments = [Segment(writer.segment, writer.worker_id, writer.size_bytes)] if data else []
        content = Content(len(data), extents)
        cache.master.tree.put((dataset, above), name.encode(), 0o644, content, segments, 5, write_type)
    writer.sync()
    writer.release()


def stored(server: ObjectStoreServer, bucket: str) -> dict[str, bytes]:
    client = server.client()
    found = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for about in page.get("Contents", ()):
            found[about["Key"]] = client.get_object(Bucket=bucket, Key=about["Key"])["Body"].read()
    return found


def some_files(count: int) -> dict[str, bytes]:
    sizes = [0, 1, 1000, 300_000, 6 << 20, 20 << 20]
    return {
        f"d{number % 7}/f{number}": os.urandom(sizes[min(number, 5) if number < 6 else 2]) for number in range(count)
    }


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache made after this gives up requests soon."""
    monkeypatch.setenv("RAYCACHE_REQUEST_TIMEOUT_S", "4")


@pytest.fixture
def proxied(s3_env: ObjectStoreServer) -> Any:
    with CountingProxy(s3_env.endpoint) as proxy:
        yield proxy


def test_all_that_was_written_is_in_the_source_with_equal_bytes(cache: Any, s3_env: Any, bucket: str) -> None:
    cache.master.attach(f"s3://{bucket}", "data", s3_env.storage_options)
    files = some_files(60)
    write(cache, "data", files)
    assert cache.persisting.behind("raycache://data").files == len(files)
    assert cache.persisting.persist("raycache://data", 60).files == len(files)
    assert stored(s3_env, bucket) == files
    tree = cache.master.tree
    tree.rename(("data", ""), b"d0", ("data", ""), b"moved")
    tree.unlink(("data", "d1"), b"f1")
    cache.persisting.persist("raycache://data", 60)
    expected = {path.replace("d0/", "moved/"): data for path, data in files.items() if path != "d1/f1"}
    assert stored(s3_env, bucket) == expected
    assert cache.status()["datasets"][0]["behind"]["files"] == 0


def test_nothing_is_lost_by_a_source_that_fails_one_request_in_ten(
    impatient: None, cache: Any, s3_env: Any, bucket: str, proxied: CountingProxy
) -> None:
    cache.master.attach(f"s3://{bucket}", "data", {**s3_env.storage_options, "endpoint_url": proxied.endpoint})
    proxied.fail_randomly(0.1, seed=7)
    random = Random(7)
    expected: dict[str, bytes] = {}
    for _ in range(6):
        files = {f"d{random.randrange(5)}/f{random.randrange(40)}": random.randbytes(2000) for _ in range(60)}
        write(cache, "data", files)
        expected |= files
        time.sleep(1.2)  # some of it is on its way by now
        old, new = random.choice(sorted(expected)), f"m{random.randrange(10)}"
        above, _, name = old.rpartition("/")
        cache.master.tree.rename(("data", above), name.encode(), ("data", ""), new.encode())
        expected[new] = expected.pop(old)
    cache.persisting.persist("raycache://data", 120)
    assert set(proxied.faults()) == {str(fault) for fault in FAULTS}
    proxied.heal()
    assert stored(s3_env, bucket) == expected


def test_a_source_that_is_away_is_waited_for(
    impatient: None, cache: Any, s3_env: Any, bucket: str, proxied: CountingProxy
) -> None:
    cache.master.attach(f"s3://{bucket}", "data", {**s3_env.storage_options, "endpoint_url": proxied.endpoint})
    proxied.down = True
    write(cache, "data", {"a": b"1" * 1000})
    with pytest.raises(SourceUnavailable, match="safe in the cache"):
        cache.persisting.persist("raycache://data", 5)
    behind = cache.persisting.behind("raycache://data")
    assert (behind.files, behind.size_bytes, behind.conflicts) == (1, 1000, 0)
    proxied.down = False
    cache.persisting.persist("raycache://data", 60)
    assert stored(s3_env, bucket) == {"a": b"1" * 1000}


def test_conflicts_are_told_and_decided(cache: Any, s3_env: Any, bucket: str) -> None:
    client = s3_env.client()
    for key in ("mine", "theirs", "gone"):
        client.put_object(Bucket=bucket, Key=key, Body=b"first")
    root_id = cache.master.attach(f"s3://{bucket}", "data", s3_env.storage_options).root_id
    cache.master.manifest(root_id)
    for key in ("mine", "theirs", "gone"):
        client.put_object(Bucket=bucket, Key=key, Body=b"changed outside")
    write(cache, "data", {"mine": b"written here", "theirs": b"written here"})
    cache.master.tree.unlink(("data", ""), b"gone")
    with pytest.raises(Changed, match="3 conflict"):
        cache.persisting.persist("raycache://data", 60)
    assert set(stored(s3_env, bucket).values()) == {b"changed outside"}
    assert cache.persisting.overwrite("raycache://data/mine") == 1
    assert cache.persisting.discard("raycache://data") == 2
    cache.persisting.persist("raycache://data", 60)
    others = dict.fromkeys(("theirs", "gone"), b"changed outside")
    assert stored(s3_env, bucket) == {"mine": b"written here", **others}
    names = [entry.name for entry in cache.master.tree.readdir(("data", ""), b"", 10)]
    assert names == [b"gone", b"mine", b"theirs"]
    assert cache.files.read_many(["raycache://data/theirs"])[0] == b"changed outside"


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process, where the cache is connected already."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["raycache", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ran(int(ended.value.code or 0), *capsys.readouterr())

    return run


def test_the_command_line_shows_waits_and_decides(
    impatient: None, cache: Any, here: Run, s3_env: Any, bucket: str, proxied: CountingProxy
) -> None:
    options = {**s3_env.storage_options, "endpoint_url": proxied.endpoint}
    raycache.dataset("data", f"s3://{bucket}", options, write_type="cache")
    write(cache, "data", {"never": b"0"})
    done = here("dataset", "set", "data", "--write-type", "async", "--json")
    assert json.loads(done.out)["write_type"] == "async", done.err
    assert here("dataset", "set", "data", "--write-type", "soon").code == 2
    proxied.down = True
    write(cache, "data", {"a": b"1" * 1000, "d/b": b"2" * 1000})
    done = here("persist", "raycache://data", "--timeout", "1")
    assert (done.code, "safe in the cache" in done.err) == (1, True), done
    (about,) = json.loads(here("status", "--json").out)["datasets"]
    behind = about["behind"]
    assert (behind["files"], behind["size_bytes"], behind["conflicts"]) == (2, 2000, 0)
    assert 0 < behind["oldest_ns"] <= time.time_ns()
    shown = here("status").out
    assert "not persisted" in shown
    assert "2.0 kB" in shown
    proxied.down = False
    done = here("persist", "raycache://data/d", "--json")
    assert json.loads(done.out)["files"] == 1, done.err
    assert here("persist", "raycache://data").code == 0
    assert stored(s3_env, bucket) == {"a": b"1" * 1000, "d/b": b"2" * 1000}
    for how, kept in (("--overwrite", b"3"), ("--discard", b"outside")):
        s3_env.client().put_object(Bucket=bucket, Key="a", Body=b"outside")
        write(cache, "data", {"a": b"3"})
        done = here("persist", "raycache://data/a")
        assert (done.code, "1 conflict(s)" in done.err) == (1, True), done
        assert "changed in the source by others" in here("status").out
        assert here("persist", "raycache://data", how).code == 0
        assert stored(s3_env, bucket)["a"] == kept
    assert here("persist", "raycache://data", "--overwrite", "--discard").code == 2


def test_the_end_of_a_cache_waits_for_sources_or_says_what_stays(
    impatient: None, cache: Any, here: Run, s3_env: Any, bucket: str, proxied: CountingProxy
) -> None:
    options = {**s3_env.storage_options, "endpoint_url": proxied.endpoint}
    raycache.dataset("data", f"s3://{bucket}", options)
    write(cache, "data", {f"f{number}": b"1" * 1000 for number in range(50)})
    assert raycache.shutdown() == {}
    assert len(stored(s3_env, bucket)) == 50
    again = current(load_settings())
    proxied.down = True
    write(again, "data", {"late": b"2" * 1000})
    done = here("stop", "--wait", "1")
    assert done.code == 0, done.err
    assert "data: its source has not got 1 file(s) of 1,000 bytes" in done.out.replace("\n", " ")
    raycache.disconnect()
    proxied.down = False
    last = current(load_settings())
    assert last.persisting.behind("raycache://data").files == 1
    last.persisting.persist("raycache://data", 60)
    assert stored(s3_env, bucket)["late"] == b"2" * 1000
    assert raycache.persist("raycache://data", timeout_s=5).paths == 0
    with pytest.raises(InvalidInput, match="conflicts"):
        raycache.persist("raycache://data", conflicts="mine")  # type: ignore[arg-type]


def test_more_is_written_than_the_quota_as_the_source_gets_it(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, s3_env: Any, bucket: str
) -> None:
    monkeypatch.setenv("RAYCACHE_WRITE_QUOTA", str(8 << 20))
    cache = request.getfixturevalue("cache")
    cache.master.attach(f"s3://{bucket}", "data", s3_env.storage_options)
    files: dict[str, bytes] = {}
    deadline = time.monotonic() + 150
    for number in range(6):
        more = {f"d/{number}-{each}": os.urandom(1 << 20) for each in range(3)}
        while True:
            try:
                write(cache, "data", more)
                break
            except NoSpace:
                assert time.monotonic() < deadline, cache.status()
                time.sleep(1)
        files |= more
        cache.persisting.persist("raycache://data", 60)
    (worker,) = cache.status()["workers"]
    assert worker["segments"]["used_bytes"] <= 8 << 20
    assert worker["segments"]["let_go_bytes"] >= 8 << 20
    found = cache.files.read_many([f"raycache://data/{path}" for path in files])
    assert [bytes(data) for data in found] == list(files.values())
