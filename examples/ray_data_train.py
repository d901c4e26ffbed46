"""Preprocess with Ray Data, then train on what came out, both through the cache.

    pip install 'raycache[data,torch,dev]'
    python examples/ray_data_train.py

Raw recordings are read from S3 pack by pack, where the cache keeps them; their spectra are written as Parquet, here to
a local directory; training reads those through the cache, epoch after epoch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tones_in_s3 import TONES, tones_in_s3
from torch import nn

import raycache

if TYPE_CHECKING:
    from ray.data import Dataset


def spectra(batch: dict[str, Any]) -> dict[str, Any]:
    """From bytes and paths to spectra and tones."""
    samples = np.stack([np.frombuffer(data, np.float32) for data in batch["bytes"]])
    tones = [int(path.partition("/")[0].removeprefix("tone")) for path in batch["path"]]
    return {"spectrum": np.abs(np.fft.rfft(samples)).astype(np.float32), "tone": np.array(tones)}


def preprocess(uri: str, directory: Path) -> None:
    """Spectra of all recordings, as Parquet files."""
    raycache.data.read_files(uri, pattern="**/*.f32").map_batches(spectra, batch_size=64).write_parquet(str(directory))


def train(read: Dataset, epochs: int) -> tuple[float, int]:
    """Train a linear model on spectra; the share that it tells right at the end, and how many spectra an epoch had."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.BatchNorm1d(257), nn.Linear(257, TONES))
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(epochs):
        right = seen = 0
        for batch in read.iter_torch_batches(batch_size=32, local_shuffle_buffer_size=256, local_shuffle_seed=1):
            scores = model(batch["spectrum"])
            right += int((scores.argmax(1) == batch["tone"]).sum())
            seen += len(batch["tone"])
            loss = nn.functional.cross_entropy(scores, batch["tone"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return right / seen, seen


def main() -> None:
    """Run it."""
    import ray

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    with tones_in_s3(options.recordings) as (uri, scratch):
        ray.data.DataContext.get_current().enable_progress_bars = False
        preprocess(uri, scratch / "spectra")
        asked = raycache.status()["totals"]["ufs_requests"]
        right, seen = train(raycache.data.read_parquet(str(scratch / "spectra")), options.epochs)
        again = raycache.status()["totals"]["ufs_requests"]
        print(f"requests: {asked} for {options.recordings} recordings, {again - asked} for all epochs of spectra")
        print(f"spectra per epoch: {seen}; told right in the last: {right:.0%}")


if __name__ == "__main__":
    main()
