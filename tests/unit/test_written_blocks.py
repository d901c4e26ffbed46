"""Files that were written, read as all others: blocks, packs, batches; and what that costs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycache.client import asking
from raycache.core.inode import Content, Extent, Segment, Verb
from raycache.core.values import Failed
from raycache.errors import Changed, Unavailable
from raycache.testing.inprocess import InProcessCache

FILE = 0o100644
COUNT = 1000


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[InProcessCache]:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "listed").write_bytes(b"0123456789" * 10)
    with InProcessCache(segments=tmp_path / "segments", workers=3) as cache:
        cache.master.attach(str(tmp_path / "source"), "data", {})
        yield cache


def write(cache: InProcessCache, files: dict[str, bytes], path: str = "") -> None:
    """In one segment and one call, shown at once."""
    writer = cache.segments.writer()
    verbs = []
    for name, data in files.items():
        content = Content(len(data), (Extent(0, len(data), writer.segment, writer.append(data)),) if data else ())
        verbs.append(Verb("put", (("data", path), name.encode(), FILE, content, [writer.about()], 1)))
    for start in range(0, len(verbs), 1000):
        assert not any(isinstance(each, Failed) for each in cache.metadata.tree.apply(verbs[start : start + 1000]))
    writer.release()
    cache.metadata.tree.publish([cache.metadata.datasets()[0].root_id])


def body(number: int) -> bytes:
    return random.Random(number).randbytes(number % 400)


@pytest.fixture
def questions(cache: InProcessCache, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many files the workers ask the master at a time what they are made of."""
    asked: list[int] = []
    contents = cache.metadata.tree.contents

    def counted(wanted: Any) -> Any:
        asked.append(len(wanted))
        return contents(wanted)

    for store in cache.pool.stores.values():
        monkeypatch.setattr(store._parts._written, "_resolve", counted)
    # No worker is so slow that another is asked what it was asked, however busy the machine is.
    monkeypatch.setattr(asking, "SILENT_SHARE", math.inf)
    return asked


def read(cache: InProcessCache, names: list[str]) -> list[bytes]:
    """By a client that holds nothing."""
    return list(map(bytes, cache.view().read_many([f"raycache://data/{name}" for name in names])))


def test_a_pack_of_a_thousand_files_is_one_question_and_one_call_to_each_worker_that_has_some(
    cache: InProcessCache, questions: list[int]
) -> None:
    files = {f"{number:04d}": body(number) for number in range(COUNT)}
    write(cache, files)
    cache.segment_calls.calls = 0
    assert read(cache, list(files)) == list(files.values())
    filled = sum(bool(data) for data in files.values())
    assert questions == [filled]
    assert cache.segment_calls.calls <= 1
    assert read(cache, list(files)) == list(files.values())
    assert questions == [filled], "what is held is not asked for"


def test_files_of_a_block_that_nobody_keeps_are_one_question(cache: InProcessCache, questions: list[int]) -> None:
    files = {f"{number:04d}": body(number) for number in range(COUNT)}
    write(cache, files)
    for store in cache.pool.stores.values():
        store.tiers.set_memory_quota(0, write_down=False)
    cache.segment_calls.calls = 0
    some = random.Random(3).sample([name for name, data in files.items() if data], 200)
    assert read(cache, some) == [files[name] for name in some]
    assert questions == [200]
    assert cache.segment_calls.calls <= 1


def test_a_load_of_a_block_is_one_question(cache: InProcessCache, questions: list[int]) -> None:
    write(cache, {f"{number:04d}": body(number) for number in range(COUNT)})
    cache.segment_calls.calls = 0
    manifest = cache.namespace.entry("raycache://data").manifest
    cache.reader.expect([(manifest, block) for block in range(manifest.block_count)])
    for store in cache.pool.stores.values():
        assert store.settle(10)
    assert questions == [sum(bool(body(number)) for number in range(COUNT))]
    assert cache.segment_calls.calls <= 1
    assert sum(store.status()["counters"]["written_bytes"] for store in cache.pool.stores.values()) == sum(
        len(body(number)) for number in range(COUNT)
    )


def test_bytes_of_the_source_and_holes_and_segments_make_one_file(cache: InProcessCache) -> None:
    attr, content = cache.metadata.tree.content(("data", "listed"))
    writer = cache.segments.writer()
    writer.append(b"WRITTEN")
    (whole,) = content.extents
    made = (
        whole._replace(length=15),
        Extent(15, 7, writer.segment),
        Extent(22, 8),
        whole._replace(at=30, length=70, offset=30),
    )
    cache.metadata.tree.commit(attr.ino, Content(100, made), [writer.about()], 1)
    writer.release()
    cache.metadata.tree.publish([cache.metadata.datasets()[0].root_id])
    expected = b"012345678901234" + b"WRITTEN" + bytes(8) + b"0123456789" * 7
    files = cache.view()
    with files.open("raycache://data/listed") as file:
        assert file.read() == expected
    assert bytes(cache.segments.read("data", Content(100, made), 10, 60)) == expected[10:70]


def test_a_large_file_lies_in_many_blocks(cache: InProcessCache) -> None:
    data = random.Random(1).randbytes(5 << 20)
    write(cache, {"large": data})
    with cache.view().open("raycache://data/large") as file:
        assert file.read() == data


def test_a_file_that_was_written_again_is_changed_for_who_has_the_old_listing(cache: InProcessCache) -> None:
    write(cache, {"file": b"first"})
    old = cache.view()
    old.listdir("raycache://data")
    write(cache, {"file": b"second time"})
    with pytest.raises(Changed), old.open("raycache://data/file") as file:
        file.read()
    with cache.view().open("raycache://data/file") as file:
        assert file.read() == b"second time"


def test_a_worker_that_is_away_is_waited_for(cache: InProcessCache) -> None:
    write(cache, {"file": b"kept on disk"})
    (segment,) = [row for store in cache.segment_calls._stores.values() for row in store.held()]
    cache.pool.kill(segment.worker_id)
    with cache.view().open("raycache://data/file") as file:
        assert file.read() == b"kept on disk"


def test_one_file_that_is_lost_takes_no_other_with_it(cache: InProcessCache) -> None:
    write(cache, {"good": b"g" * 100})
    tree = cache.metadata.tree
    lost = Content(100, (Extent(0, 100, "f" * 32),))
    tree.put(("data", ""), b"lost", FILE, lost, [Segment("f" * 32, "nobody", 100)], 1)
    tree.publish([cache.metadata.datasets()[0].root_id])
    for store in cache.pool.stores.values():
        store._parts._written._reach_s = 0.5  # type: ignore[union-attr]
    files = cache.view()
    with files.open("raycache://data/good") as file:
        assert file.read() == b"g" * 100
    with pytest.raises(Unavailable), files.open("raycache://data/lost") as file:
        file.read()
    with files.open("raycache://data/good") as file:
        assert file.read() == b"g" * 100
