"""Preprocess with Spark, keep a Hive table of what came out, and train on it with PyTorch: one cache, and no copy.

    pip install 'raycache[spark,data,torch,dev]' && sudo apt install default-jre-headless
    python examples/spark_to_torch.py

A bucket is mounted to be written. Spark reads recordings there and writes their spectra, as Parquet in directories that
say the tone; Hive makes a table of these. Ray Data reads the same files out of the cache, with the tone as a column,
and PyTorch trains on them at once. The bucket gets the files in the background; a proxy in front of it counts who asks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from ray_data_train import train
from tones_in_s3 import own_ray, tones_bucket

import raycache
from raycache.actors.cluster import current
from raycache.testing import CountingProxy

BUCKET = "tones"
SPECTRA = "spectra"
JOB_S = 600


def preprocess(mountpoint: Path, scratch: Path) -> str:
    """Run the Spark job on the mount, as a program of its own; what Hive's table has, and what the files have."""
    job = [sys.executable, str(Path(__file__).with_name("spark_spectra.py"))]
    scratch.mkdir()
    done = subprocess.run(
        [*job, str(mountpoint / "train"), str(mountpoint / SPECTRA), str(scratch)],
        capture_output=True, text=True, timeout=JOB_S, check=False,
        env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": str(scratch),
             "PYSPARK_PYTHON": sys.executable},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"Spark failed:\n{done.stderr}")
    return done.stdout.strip()


def tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """Columns of lists as Spark writes them, as arrays that PyTorch takes."""
    return {"spectrum": np.stack(batch["spectrum"]), "tone": batch["tone"]}


def learn(epochs: int) -> tuple[float, int]:
    """Train on the table through Ray Data; see ``ray_data_train.train``."""
    from ray.data.datasource import Partitioning, PartitionStyle

    partitioning = Partitioning(PartitionStyle.HIVE, field_types={"tone": int})
    table = raycache.data.read_parquet(f"s3://{BUCKET}/{SPECTRA}", partitioning=partitioning)
    return train(table.map_batches(tensors), epochs)


def in_cache() -> dict[str, bytes]:
    """The files of the table, as the cache has them."""
    uris = [f"{top}/{name}" for top, _, names in raycache.walk(f"s3://{BUCKET}/{SPECTRA}") for name in names]
    names = [uri.partition(f"/{SPECTRA}/")[2] for uri in uris]
    return dict(zip(names, map(bytes, raycache.read_many(uris)), strict=True))


def in_bucket() -> dict[str, bytes]:
    """The same as the bucket has them, without raycache."""
    s3 = fsspec.filesystem("s3")
    found = s3.cat(s3.find(f"{BUCKET}/{SPECTRA}"))
    return {path.partition(f"/{SPECTRA}/")[2]: data for path, data in found.items()}


def reads_of(store: CountingProxy, directory: str) -> int:
    """How many requests asked the store for bytes of files below a directory of the bucket."""
    return sum(method == "GET" and path.startswith(f"/{BUCKET}/{directory}/") for method, path in store.requests())


def run(store: CountingProxy, scratch: Path, epochs: int) -> None:
    """Spark, Hive, Ray Data, PyTorch, and then the bucket."""
    import ray

    mountpoint = scratch / "mnt"
    mountpoint.mkdir()
    ray.data.DataContext.get_current().enable_progress_bars = False
    with raycache.mount(f"s3://{BUCKET}", mountpoint, mode="w"):
        print(preprocess(mountpoint, scratch / "spark"))
        right, seen = learn(epochs)
    print(f"spectra per epoch: {seen}; told right in the last: {right:.0%}")
    current().persisting.persist(f"s3://{BUCKET}")
    print(f"requests for bytes: {reads_of(store, 'train')} of recordings, {reads_of(store, SPECTRA)} of spectra")
    made = in_cache()
    print(f"files of the table: {len(made)}; the bucket has the same: {in_bucket() == made}")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    with tones_bucket(options.recordings) as (_, scratch), CountingProxy(os.environ["AWS_ENDPOINT_URL"]) as store:
        os.environ["AWS_ENDPOINT_URL"] = store.endpoint
        with own_ray():
            run(store, scratch, options.epochs)


if __name__ == "__main__":
    main()
