"""What was written gets to its source, whatever the source answers."""

from __future__ import annotations

import os
from typing import Any

import pytest

from raycache.core.inode import Content, Extent, Segment
from raycache.testing import CountingProxy, ObjectStoreServer


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
