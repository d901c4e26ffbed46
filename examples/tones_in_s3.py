"""What the examples need around them on one machine: an S3 server with a bucket of recordings, and a Ray of their own.

A recording is half a thousand samples of a tone in noise, as raw 32-bit floats; its directory says which tone it is.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

TONES = 4
SAMPLES = 512


@contextmanager
def tones_in_s3(recordings: int) -> Iterator[tuple[str, Path]]:
    """Yields the URI of the recordings, and a scratch directory, beside a Ray that this program has joined; ends all
    that was started."""
    with tones_bucket(recordings) as (uri, scratch), own_ray():
        yield uri, scratch


@contextmanager
def own_ray() -> Iterator[None]:
    """A cluster of its own, even where another one runs, and a cache on it. On yours, a plain ray.init() is all."""
    import ray

    import raycache

    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        ray.init(
            address="local", object_store_memory=512 << 20, include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR,
        )  # fmt: skip
        stack.callback(raycache.shutdown)
        raycache.init(block_bytes="64KiB")  # far too small for real data: here it makes many packs of few files
        yield


@contextmanager
def tones_bucket(recordings: int) -> Iterator[tuple[str, Path]]:
    """The same without a Ray: an S3 server, which the environment of this process names from now on."""
    from raycache.testing import ObjectStoreServer

    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raycache-example-")))
        server = stack.enter_context(ObjectStoreServer())
        for name in [name for name in os.environ if name.startswith(("AWS_", "RAYCACHE_"))]:
            del os.environ[name]
        os.environ.update(server.environ, RAYCACHE_STATE_DIR=str(scratch / "state"))
        server.create_bucket("tones")
        client = server.client()
        for number in range(recordings):
            key = f"train/tone{number % TONES}/{number:05d}.f32"
            client.put_object(Bucket="tones", Key=key, Body=recording(number).tobytes())
        yield "s3://tones/train", scratch


def recording(number: int) -> np.ndarray:
    """A tone in noise three times as loud."""
    random = np.random.default_rng(number)
    tone = np.sin(np.arange(SAMPLES) * 2 * np.pi * (number % TONES + 3) / 64 + random.uniform(0, 2 * np.pi))
    return (tone + random.normal(0, 3, SAMPLES)).astype(np.float32)
