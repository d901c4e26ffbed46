"""How many accelerators one node feeds: the loop of MLPerf Storage's ResNet-50 on H100s, with a pause for each step.

One file of 114,660 bytes per sample, batches of 400, 0.224 s of computing for each; every accelerator is a process
with a DataLoader of its own, which waits for a batch and then sleeps. Its utilisation is the time that it computes in,
of the time from the first batch of an epoch to the end; five epochs, each in another order. An accelerator counts as
fed from 90 % on, and there is one more of them until they are not. The page cache is dropped before each epoch.

What is emulated is the demand, not the disk: bytes are stacked into one tensor and not decoded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loaders
import report
import torch
import workload
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from raycache.testing import ObjectStoreServer

FILE_BYTES, BATCH, STEP_S, FED = 114_660, 400, 0.224, 0.9
WAIT_S = 300


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=16_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--most", type=int, default=12, help="accelerators")
    parser.add_argument("--cases", default="ext4,mount,FileDataset,StreamDataset")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line and write nothing")
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    found: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory() as scratch, ObjectStoreServer() as server:
        home = Path(scratch)
        names = loaders.stored(server, home, arguments.files, FILE_BYTES)
        with loaders.cached(arguments.files * FILE_BYTES, server, home):
            import raycache

            (home / "mnt").mkdir()
            raycache.dataset("train", loaders.SOURCE)
            raycache.load("train").wait(WAIT_S)
            with raycache.mount(loaders.SOURCE, home / "mnt"):
                for case in arguments.cases.split(","):
                    found[case] = {}
                    for accelerators in range(1, arguments.most + 1):
                        used = utilisation(case, home, names, accelerators, arguments.epochs)
                        found[case][accelerators] = used
                        print(f"{case}: {accelerators} at {used:.1%}", flush=True)
                        if used < FED:
                            break
    text = describe(found, arguments.files, arguments.epochs)
    print(text)
    if arguments.json:
        print(json.dumps(found))
    else:
        command = f"python benchmarks/accelerators.py --files {arguments.files} --epochs {arguments.epochs}"
        report.write_section("Loaders: emulated accelerators", command, text)


def utilisation(case: str, home: Path, names: list[str], accelerators: int, epochs: int) -> float:
    """Of the accelerator that is used least, over all epochs."""
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(accelerators + 1), context.Queue()
    processes = [
        context.Process(target=accelerator, args=(case, home, names, rank, accelerators, epochs, start, told))
        for rank in range(accelerators)
    ]
    for process in processes:
        process.start()
    try:
        for _ in range(epochs + 1):
            workload.drop_page_cache()
            start.wait(WAIT_S)
        slowest: float = min(told.get(timeout=WAIT_S) for _ in processes)
        return slowest
    finally:
        for process in processes:
            process.join(WAIT_S)
            process.kill()


def accelerator(
    case: str, home: Path, names: list[str], rank: int, ranks: int, epochs: int, start: Any, told: Any
) -> None:
    """One of them: an epoch to begin with, and then those that count."""
    torch.set_num_threads(1)
    dataset, sampler = data_of(case, home, names, rank, ranks)
    loader = DataLoader(
        dataset, BATCH, sampler=sampler, num_workers=1, persistent_workers=True, prefetch_factor=4,
        multiprocessing_context="forkserver", drop_last=True,
    )  # fmt: skip
    computed_s = took_s = 0.0
    for epoch in range(epochs + 1):
        (sampler or dataset).set_epoch(epoch)
        start.wait(WAIT_S)
        batches = iter(loader)
        next(batches)  # as MLPerf Storage does, an epoch's first batch is not counted
        began, steps = time.perf_counter(), sum(steps_of(batches))
        if epoch:
            computed_s += steps * STEP_S
            took_s += time.perf_counter() - began
    told.put(computed_s / took_s)


def steps_of(batches: Iterator[Any]) -> Iterator[int]:
    """Compute, for each batch."""
    time.sleep(STEP_S)
    yield 1
    for _ in batches:
        time.sleep(STEP_S)
        yield 1


def data_of(case: str, home: Path, names: list[str], rank: int, ranks: int) -> tuple[Dataset, Any]:
    """What a rank reads, and its sampler if it needs one."""
    from raycache.data.torch import EpochSampler, FileDataset, StreamDataset

    if case == "StreamDataset":
        return StreamDataset(loaders.SOURCE, rank=rank, ranks=ranks, even=True), None
    if case == "FileDataset":
        files = FileDataset(loaders.SOURCE)
        return files, EpochSampler(files, rank=rank, ranks=ranks, even=True)
    root = home / ("mnt" if case == "mount" else "ext4")
    local = loaders.LocalFiles([str(root / name) for name in names])
    return local, DistributedSampler(local, ranks, rank, drop_last=True)


def describe(found: dict[str, dict[int, float]], files: int, epochs: int) -> str:
    """The section's table."""
    rows = [
        [case, str(max([count for count, used in by_count.items() if used >= FED], default=0)),
         ", ".join(f"{count}: {used:.1%}" for count, used in by_count.items())]
        for case, by_count in found.items()
    ]  # fmt: skip
    about = (
        f"{files:,} files of {FILE_BYTES:,} bytes, {epochs} epochs, batches of {BATCH}, {STEP_S} s each: "
        f"{BATCH / STEP_S:,.0f} samples/s for each H100. Utilisation of the one that is used least, by how many."
    )
    return f"{about}\n\n" + report.table(["", f"H100s at {FED:.0%}", "utilisation"], rows)


if __name__ == "__main__":
    main()
