"""Train with Ray Train on two nodes, each reading what it keeps; lose a worker, and go on at the last checkpoint.

    pip install 'raycache[data,torch,dev]'
    python examples/ray_train.py

Everything runs on this machine: an S3 server, and a Ray cluster of two nodes. What a training of yours needs is in
``train``. Checkpoints are written into the cache, beside the recordings, and get to the bucket from there; what they
say of the data is a few numbers.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tones_in_s3 import TONES, tones_bucket
from torch import nn
from torch.utils.data import DataLoader

import raycache

BATCH = 16
CHECKPOINT_EVERY = 4
"""Steps."""


def decode(buffer: memoryview, path: str) -> tuple[torch.Tensor, int]:
    """A recording's spectrum, and which tone it is."""
    samples = torch.frombuffer(bytearray(buffer), dtype=torch.float32)
    return torch.fft.rfft(samples).abs(), int(path.partition("/")[0].removeprefix("tone"))


def train(config: dict[str, Any]) -> None:
    """What each worker runs."""
    import ray.train
    import ray.train.torch

    from raycache.data.torch import StreamDataset

    torch.manual_seed(1)
    rank, ranks = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    model = ray.train.torch.prepare_model(nn.Sequential(nn.BatchNorm1d(257), nn.Linear(257, TONES)))
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    # Equally many samples for each rank, as DDP needs, and those of its node, as far as they go.
    stream = StreamDataset(config["uri"], decode, seed=1, even=True, near=True)
    seen: dict[int, int] = {}
    """Samples of all ranks, by epoch."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            saved = torch.load(Path(directory) / "state.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        stream.load_state_dict(saved["data"])
        seen = saved["seen"]
    for epoch in range(stream.epoch, config["epochs"]):
        stream.set_epoch(epoch)
        went_on_at, right, steps = seen.setdefault(epoch, 0), 0, -(-len(stream) // BATCH)
        for step, (spectra, tones) in enumerate(DataLoader(stream, BATCH), 1):
            scores = model(spectra)
            loss = nn.functional.cross_entropy(scores, tones)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            right += int((scores.argmax(1) == tones).sum())
            seen[epoch] += ranks * len(tones)
            if (epoch, step) == config["lost"] and checkpoint is None and rank == 1:
                time.sleep(3)  # the last checkpoint is on record by then
                os._exit(1)  # as if its node had gone
            if step % CHECKPOINT_EVERY == 0 or step == steps:
                state = {
                    "model": model.state_dict(), "optimiser": optimiser.state_dict(), "seen": seen,
                    "data": stream.state_after(step, BATCH),
                }  # fmt: skip
                about = {"seen": seen, "epoch": epoch, "went_on_at": went_on_at, "right": right / (step * BATCH)}
                report(about, state if rank == 0 else None)


def report(metrics: dict[str, Any], state: dict[str, Any] | None) -> None:
    """Tell Ray Train, with a checkpoint where there is a state."""
    import ray.train

    with tempfile.TemporaryDirectory() as directory:
        checkpoint = None
        if state is not None:
            torch.save(state, Path(directory) / "state.pt")
            checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report(metrics, checkpoint=checkpoint)


@contextmanager
def two_nodes() -> Iterator[None]:
    """A Ray cluster of two nodes, and raycache on it."""
    import ray
    from ray.cluster_utils import Cluster

    options: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 300 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    try:
        cluster.add_node(**options)
        os.environ["RAYCACHE_ADDRESS"] = cluster.address
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        raycache.init(block_bytes="64KiB")  # far too small for real data: here it makes many packs of few files
        yield
        raycache.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def main() -> None:
    """Run it."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    with tones_bucket(options.recordings) as (uri, _), two_nodes():
        bucket, _, recordings = uri.rpartition("/")
        raycache.dataset("bucket", bucket)
        trainer = TorchTrainer(
            train,
            train_loop_config={"uri": f"raycache://bucket/{recordings}", "epochs": options.epochs, "lost": (1, 6)},
            scaling_config=ScalingConfig(num_workers=2, placement_strategy="STRICT_SPREAD"),
            run_config=RunConfig(
                name="tones", storage_path="bucket/checkpoints",
                storage_filesystem=raycache.data.arrow_filesystem(),
                failure_config=FailureConfig(max_failures=1),
            ),
            torch_config=TorchConfig(backend="gloo"),
        )  # fmt: skip
        result = trainer.fit()
        assert result.metrics is not None
        assert result.metrics_dataframe is not None
        for told in result.metrics_dataframe.drop_duplicates("epoch", keep="last").to_dict("records"):
            print(f"epoch {told['epoch']} went on at {told['went_on_at']}, told right: {told['right']:.0%}")
        print("samples per epoch:", list(result.metrics["seen"].values()))


if __name__ == "__main__":
    main()
