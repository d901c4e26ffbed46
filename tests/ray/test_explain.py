"""``raycache explain`` knows what readers waited for, whatever process they were in."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from raycache.core.waits import SOURCE, VIEW, ReaderWaits
from raycache.data.torch import FileDataset, StreamDataset

FILES, SIZE = 120, 2000
WAIT_S = 30


def make_source(directory: Path) -> Path:
    for number in range(FILES):
        (directory / f"{number:03d}").write_bytes(bytes([number]) * SIZE)
    return directory


def told(cache: Any, readers: int) -> list[ReaderWaits]:
    """What workers were told, once it is of so many readers."""
    deadline = time.monotonic() + WAIT_S
    while len(found := cache.keepers.waits()) < readers:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found  # type: ignore[no-any-return]


def bytes_by_kind(readers: list[ReaderWaits]) -> dict[str, int]:
    found: dict[str, int] = {}
    for wait in [wait for reader in readers for wait in reader.waits]:
        found[wait.kind] = found.get(wait.kind, 0) + wait.size_bytes
    return found


def test_workers_of_a_loader_tell_what_they_waited_for(cache: Any, tmp_path: Path, cli: Any) -> None:
    stream = StreamDataset(str(make_source(tmp_path)), rank=3, ranks=4)
    stream.set_epoch(7)
    seen = sum(len(batch) for batch in DataLoader(stream, 4, num_workers=2, multiprocessing_context="forkserver"))
    assert seen == FILES / 4
    readers = told(cache, 2)
    job = cache.reader.waits.name.job
    assert sorted(each.reader for each in readers) == [(job, 3, 0, 7), (job, 3, 1, 7)]
    assert len({each.process for each in readers}) == 2
    found = bytes_by_kind(readers)
    assert found[SOURCE] > 0
    assert sum(found.values()) == seen * SIZE
    said = cli("explain")
    assert said.stdout.startswith(f"job {job}: Rank 3 (worker "), said.stderr
    assert "in epoch 7" in said.stdout
    assert "for the source of" in said.stdout
    as_json = json.loads(cli("explain", job, "--epoch", "7", "--json").stdout)
    assert [each["worker"] for each in as_json["readers"]] in ([0, 1], [1, 0])
    wrong = cli("explain", "nobody")
    assert (wrong.returncode, f"jobs that did: {job}" in wrong.stderr) == (1, True)


def test_a_process_without_workers_tells_by_itself(cache: Any, tmp_path: Path) -> None:
    dataset = FileDataset(str(make_source(tmp_path)))
    for _ in range(3):
        dataset.__getitems__(range(FILES))
    cache.reader.waits.tell()
    (reader,) = told(cache, 1)
    assert reader.reader == (cache.reader.waits.name.job, 0, None, None)
    found = bytes_by_kind([reader])
    assert sum(found.values()) == 3 * FILES * SIZE
    assert found[SOURCE] >= FILES * SIZE
    assert set(found) >= {SOURCE, VIEW} or reader.seconds > 0
