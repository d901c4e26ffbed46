"""A cache for all tests of a module, for those that harm nobody."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import raycache


@pytest.fixture(scope="module")
def connected(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The source of dataset ``data``."""
    from raycache.actors.cluster import current
    from raycache.config import load_settings

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYCACHE_NAMESPACE", f"test-{uuid.uuid4().hex[:8]}")
        patch.setenv("RAYCACHE_ADDRESS", ray_address)
        raycache.disconnect()
        current(load_settings())
        source = tmp_path_factory.mktemp("source")
        raycache.dataset("data", str(source))
        yield source
        raycache.shutdown()
