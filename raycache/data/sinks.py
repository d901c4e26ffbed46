"""Writing with Ray Data: its writers over our file system; what they write is seen when all of it is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.data import Dataset

from raycache.actors.cluster import current
from raycache.client.together import together
from raycache.core.paths import RAYCACHE_SCHEME
from raycache.data.arrow import arrow_filesystem


def write_with(writer: str, dataset: Dataset, uri: str, mode: str, arguments: Mapping[str, Any]) -> None:
    """``dataset.<writer>`` to a directory of the cache."""
    with together(current().files, uri, mode) as aside:
        # What is aside gets to no source; what takes its place does, as the dataset of the cache says.
        filesystem = arrow_filesystem(write_type="cache")
        path = aside.removeprefix(f"{RAYCACHE_SCHEME}://")
        getattr(dataset, writer)(path, filesystem=filesystem, **arguments)
