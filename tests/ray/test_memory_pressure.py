"""Others fill the node's object store: the cache gives way, Ray spills nothing of it, and no read fails."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import raycache
from raycache.actors.plasma import OwnStore

FILES, FILE_BYTES = 48, 4 << 20
STEP_BYTES = 32 << 20


def test_the_cache_gives_way_before_ray_spills(cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "data"
    source.mkdir()
    body = np.random.default_rng(1).bytes(FILE_BYTES)
    for number in range(FILES):
        (source / f"{number:02d}").write_bytes(bytes([number]) + body[1:])
    uris = [f"{source}/{number:02d}" for number in range(FILES)]
    raycache.dataset("pressed", str(source))

    def read_all() -> None:
        for number, uri in enumerate(uris):
            (data,) = raycache.read_many([uri])
            assert bytes(data) == bytes([number]) + body[1:]

    def memory() -> dict[str, Any]:
        (worker,) = raycache.status()["workers"]
        found: dict[str, Any] = worker["tiers"][0]
        return found

    for _ in range(2):
        read_all()
    deadline = time.monotonic() + 20
    while memory()["used_bytes"] < FILES * FILE_BYTES:
        assert time.monotonic() < deadline, memory()
        read_all()
    store = OwnStore()
    before = store.figures()
    assert before.used_bytes >= FILES * FILE_BYTES
    held: list[Any] = []
    # What the rest has room for, and more: without giving way, Ray would have to spill before the end.
    while len(held) * STEP_BYTES < 0.66 * before.capacity_bytes:
        held.append(ray.put(np.zeros(STEP_BYTES, np.uint8)))
        read_all() if len(held) % 6 == 0 else time.sleep(0.15)
    time.sleep(2)  # Ray decides once a second
    after = store.figures()
    assert after.spilled_bytes == before.spilled_bytes, (before, after, memory())
    found = memory()
    assert found["shrunk_bytes"] > 0
    assert found["quota_bytes"] < found["configured_bytes"]
    assert after.used_bytes + FILES * FILE_BYTES > 0.8 * after.capacity_bytes, "it would not have fitted"
    read_all()
    assert raycache.status()["workers"][0]["ray_spilled_bytes"] == 0
