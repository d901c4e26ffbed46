"""Train from an object store with PyTorch and no mount; stop in the middle of an epoch, and go on where it was.

    pip install 'raycache[torch,dev]'
    python examples/torch_loader.py

Everything runs on this machine. What a training script of yours needs is in ``train``.
"""

from __future__ import annotations

import argparse

import torch
from tones_in_s3 import TONES, tones_in_s3
from torch import nn
from torch.utils.data import DataLoader

from raycache.data.torch import FileDataset, StreamDataset

BATCH = 32
WORKERS = 2


def decode(buffer: memoryview, path: str) -> tuple[torch.Tensor, int]:
    """A recording's spectrum, and which tone it is. ``buffer`` is the cache's own memory: nothing has copied it yet."""
    samples = torch.frombuffer(bytearray(buffer), dtype=torch.float32)
    tone = int(path.partition("/")[0].removeprefix("tone"))
    return torch.fft.rfft(samples).abs(), tone


def loader(stream: StreamDataset) -> DataLoader:
    """Workers from a fork server: they connect to the cache by themselves."""
    return DataLoader(stream, BATCH, num_workers=WORKERS, multiprocessing_context="forkserver", persistent_workers=True)


def train(uri: str, epochs: int) -> tuple[nn.Module, list[int]]:
    """Train, be stopped after three batches of the last epoch, resume; the model, and the samples of each part."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.BatchNorm1d(257), nn.Linear(257, TONES))
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    counted: list[int] = []

    def step(spectra: torch.Tensor, tones: torch.Tensor) -> None:
        loss = nn.functional.cross_entropy(model(spectra), tones)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        counted[-1] += len(tones)

    stream = StreamDataset(uri, decode, seed=1)
    batches = loader(stream)
    for epoch in range(epochs):
        stream.set_epoch(epoch)  # another order
        counted.append(0)
        for number, batch in enumerate(batches, 1):
            step(*batch)
            if epoch == epochs - 1 and number == 3:
                break
    # What would be saved beside the model. It says nothing of how many ranks and workers there were.
    state = stream.state_after(3, BATCH, workers=WORKERS)

    resumed = StreamDataset(uri, decode, seed=1)
    resumed.load_state_dict(state)
    counted.append(0)
    for batch in DataLoader(resumed, BATCH):
        step(*batch)
    return model, counted


def accuracy(model: nn.Module, uri: str) -> float:
    """Share of the recordings whose tone is told right; read in large batches, by number, in this process."""
    files = FileDataset(uri, decode)
    model.eval()
    with torch.no_grad():
        right = [(model(spectra).argmax(1) == tones).float() for spectra, tones in DataLoader(files, 128)]
    return float(torch.cat(right).mean())


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    with tones_in_s3(options.recordings) as (uri, _):
        model, counted = train(uri, options.epochs)
        print(f"samples per part: {counted}; the last two make one epoch of {counted[-2] + counted[-1]}")
        print(f"told right: {accuracy(model, uri):.0%}")


if __name__ == "__main__":
    main()
