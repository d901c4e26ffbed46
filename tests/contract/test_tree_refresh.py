"""A recursive refresh of a real S3 bucket: as if each directory had been listed alone, and all or nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from raycache.errors import NotFound
from raycache.testing import ObjectStoreServer
from raycache.testing.inprocess import InProcessCache


def test_tree_of_a_bucket(s3_env: ObjectStoreServer, bucket: str) -> None:
    client = s3_env.client()
    keys = [f"train/{number % 7}/{number:03}.bin" for number in range(200)]
    keys += ["both", "both/in", "marked/", "empty", "odd/new\nline", "odd/plain", "a/b/c/d", f"long/{'x' * 255}"]

    def put(key: str) -> Any:
        return client.put_object(Bucket=bucket, Key=key, Body=b"" if key in ("marked/", "empty") else key.encode())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, keys))
    source = f"s3://{bucket}"
    with InProcessCache() as at_once, InProcessCache() as one_by_one:
        for cache in (at_once, one_by_one):
            cache.files.attach(source, "data", s3_env.storage_options)
        job = at_once.refresh_tree("raycache://data")
        assert (job.state, job.directories) == ("done", 16)
        calls = counted(at_once)
        assert list(at_once.files.walk("raycache://data")) == list(one_by_one.files.walk("raycache://data"))
        assert calls == []
        for uri, _, names in at_once.files.walk("raycache://data"):
            assert at_once.files.stat(uri).extra == one_by_one.files.stat(uri).extra
            for name in names:
                assert at_once.files.stat(f"{uri}/{name}") == one_by_one.files.stat(f"{uri}/{name}")
        assert bytes(at_once.files.read_many(["raycache://data/odd/new\nline"])[0]) == b"odd/new\nline"

        client.delete_object(Bucket=bucket, Key="train/3/003.bin")
        put("train/new/1")
        again = at_once.refresh_tree("raycache://data/train")
        assert (again.state, again.files, again.directories, again.changed) == ("done", 200, 9, 3)
        assert "003.bin" not in at_once.files.listdir("raycache://data/train/3")
        assert at_once.files.listdir("raycache://data/train/new") == ["1"]

        for key in [*keys, "train/new/1"]:
            client.delete_object(Bucket=bucket, Key=key)
        client.delete_bucket(Bucket=bucket)
        with pytest.raises(NotFound, match="no such bucket"):
            at_once.refresh_tree("raycache://data")
        assert at_once.files.listdir("raycache://data/train/new") == ["1"], "what was listed stays"


def counted(cache: InProcessCache) -> list[str]:
    """A list that grows with each use of the source from now on."""
    calls: list[str] = []
    original = cache.metadata._sources.call
    cache.metadata._sources.call = lambda name, use: calls.append(name) or original(name, use)  # type: ignore[method-assign]
    return calls
