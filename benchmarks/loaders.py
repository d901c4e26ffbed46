"""What a training loop gets: PyTorch's DataLoader over ext4, over the mount and over our datasets, and Ray Data.

``loaders``: one file per sample, batches of raw bytes stacked into one tensor, nothing decoded. DataLoader workers
persist, and have read one epoch before the clock starts, so that neither their start nor the source is measured; with 0
workers the main process reads. The page cache is dropped before each epoch: ext4 reads its disk, the mount and our
datasets what the cache's workers hold in memory. Ray Data's epochs begin with its own start-up, as they do in a job.

``startup``: until ``read_files`` of a made-up source with millions of files has given its first batch.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import report
import torch
import workload
from torch.utils.data import DataLoader, Dataset

from raycache.testing import ObjectStoreServer
from raycache.testing.synthetic import SyntheticUfs

BATCH = 64
WORKERS = 2
BUCKET, PREFIX = "loaders", "train"
SOURCE = f"s3://{BUCKET}/{PREFIX}"
MADE_UP = "s3://synthetic/train"
Found = dict[str, list[float]]


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=100_000, help="bytes per file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--startup-files", type=int, default=10_000_000)
    parser.add_argument("--parts", default="loaders,startup", help="which parts, comma separated")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line and write nothing")
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    found: dict[str, Any] = {}
    for part in arguments.parts.split(","):
        if part == "loaders":
            measured = loaders(arguments.files, arguments.size, arguments.rounds)
            about = (
                f"{arguments.files:,} files of {arguments.size / 1000:.0f} kB, {WORKERS} workers, batches of {BATCH}"
            )
            text = f"{about}; S3 is SeaweedFS on the same machine. Median (range).\n\n" + describe(measured)
        else:
            measured = startup(arguments.startup_files)
            text = report.table(["seconds", ""], [[case, f"{value:,.2f}"] for case, value in measured.items()])
        found |= measured
        print(text, flush=True)
        if not arguments.json:
            command = (
                f"python benchmarks/loaders.py --parts {part} --files {arguments.files} --size {arguments.size} "
                f"--rounds {arguments.rounds} --startup-files {arguments.startup_files}"
            )
            report.write_section(f"Loaders: {part}", command, text)
    if arguments.json:
        print(json.dumps(found))


# ---- samples per second


class LocalFiles(Dataset):
    """What a program without raycache has: a list of paths, and ``open``."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Any:
        with open(self.paths[number], "rb", buffering=0) as file:
            return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)


def loaders(files: int, size_bytes: int, rounds: int) -> Found:
    """Samples per second by case, one figure per round."""
    import ray

    import raycache

    found: Found = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch, ObjectStoreServer() as server:
        home = Path(scratch)
        os.environ.update(server.environ, RAYCACHE_STATE_DIR=str(home / "state"), RAYCACHE_MEM="50%")
        names = workload.make_files(home / "ext4", files, size_bytes)
        server.create_bucket(BUCKET)
        workload.upload(server, BUCKET, home / "ext4", PREFIX)
        ray.init(
            address="local", object_store_memory=int(2.4 * files * size_bytes) + (512 << 20), include_dashboard=False,
            log_to_driver=False, logging_level="ERROR",
        )  # fmt: skip
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            (home / "mnt").mkdir()
            with raycache.mount(SOURCE, home / "mnt"):
                os.listdir(home / "mnt")
                torch_cases(home, names, rounds, found)
                ray_cases(server, files, rounds, found)
        finally:
            raycache.shutdown()
            ray.shutdown()
    return dict(found)


def torch_cases(home: Path, names: list[str], rounds: int, found: Found) -> None:
    """DataLoaders whose workers live through all rounds, which are interleaved."""
    from raycache.data.torch import FileDataset, StreamDataset

    stream = StreamDataset(SOURCE)
    cases: dict[str, tuple[Any, bool]] = {
        "ext4": (LocalFiles([str(home / "ext4" / name) for name in names]), True),
        "mount": (LocalFiles([str(home / "mnt" / name) for name in names]), True),
        "FileDataset": (FileDataset(SOURCE), True),
        "StreamDataset": (stream, False),
    }
    named = {(case, workers): f"{case}, {workers} workers" for workers in (WORKERS, 0) for case in cases}
    made = {
        name: DataLoader(
            cases[case][0], BATCH, shuffle=True if cases[case][1] else None, num_workers=workers,
            multiprocessing_context="forkserver" if workers else None, persistent_workers=workers > 0,
        )
        for (case, workers), name in named.items()
    }  # fmt: skip
    for loader in made.values():
        timed(lambda loader=loader: (len(batch) for batch in loader), len(names))  # type: ignore[misc]
    for number in range(rounds):
        stream.set_epoch(number + 1)
        for case, loader in made.items():
            workload.drop_page_cache()
            found[case].append(timed(lambda loader=loader: (len(batch) for batch in loader), len(names)))  # type: ignore[misc]


def ray_cases(server: ObjectStoreServer, files: int, rounds: int, found: Found) -> None:
    """Ray Data straight from S3, and from the cache, which has all of it by now."""
    import ray
    from pyarrow.fs import S3FileSystem

    import raycache

    options = server.storage_options
    host = server.endpoint.removeprefix("http://")
    direct = S3FileSystem(
        access_key=options["key"], secret_key=options["secret"], endpoint_override=host, scheme="http"
    )
    cases: dict[str, Callable[[], Any]] = {
        "Ray Data, S3": lambda: ray.data.read_binary_files(f"{BUCKET}/{PREFIX}", filesystem=direct),
        "Ray Data, fsspec": lambda: ray.data.read_binary_files(
            f"raycache://{BUCKET}-{PREFIX}", filesystem=raycache.filesystem()
        ),
        "Ray Data, read_files": lambda: raycache.data.read_binary_files(SOURCE),
    }
    for _ in range(rounds):
        for case, read in cases.items():
            found[case].append(timed(lambda read=read: batches_of(read()), files))  # type: ignore[misc]


def batches_of(dataset: Any) -> Iterator[int]:
    """Sizes of the batches of a dataset."""
    for batch in dataset.iter_batches(batch_size=BATCH, batch_format="pyarrow"):
        yield batch.num_rows


def timed(read: Callable[[], Iterator[int]], files: int) -> float:
    """Samples per second of an epoch, which must have all files."""
    began = time.perf_counter()
    seen = sum(read())
    took_s = time.perf_counter() - began
    if seen != files:
        raise RuntimeError(f"{seen} of {files} files were read")
    return files / took_s


def describe(found: Found) -> str:
    """The section's tables."""
    rows = [[case, report.spread(values)] for case, values in found.items()]
    pairs = [
        (f"{case}, {workers} workers", f"ext4, {workers} workers")
        for workers in (WORKERS, 0)
        for case in ("mount", "FileDataset", "StreamDataset")
    ]
    pairs += [(f"Ray Data, {way}", "Ray Data, S3") for way in ("fsspec", "read_files")]
    compared = [
        [f"{over} / {under}", report.spread(report.ratios(found[over], found[under]), ".2f")] for over, under in pairs
    ]
    return (
        report.table(["samples per second", "median (range)"], rows)
        + "\n\n"
        + report.table(["ratio", "median (range)"], compared)
    )


# ---- until the first batch of millions of files


class MadeUp(SyntheticUfs):
    """A made-up source whose files have bytes, all of them zero."""

    def get(self, path: str, start: int, length: int, etag: str) -> bytes:
        """See UnderFileSystem."""
        return bytes(length)


def made_up_actors(files: int) -> Any:
    """A master, and through it workers, whose source is made up: everything else is real."""
    import ray

    from raycache.actors import fleet
    from raycache.actors.master import MasterActor
    from raycache.actors.names import WORKER_GROUPS
    from raycache.actors.worker import WorkerActor
    from raycache.meta import metadata
    from raycache.ufs import sources

    def make_up() -> None:
        made, open_real = MadeUp(MADE_UP, files), sources.open_ufs
        for module in (sources, metadata):
            module.open_ufs = lambda uri, *rest: made if uri == MADE_UP else open_real(uri, *rest)

    class MadeUpWorker(WorkerActor):
        def __init__(self, *arguments: Any) -> None:
            make_up()
            super().__init__(*arguments)

    class MadeUpMaster(MasterActor):
        def __init__(self, *arguments: Any) -> None:
            make_up()
            fleet._REMOTE_WORKER = ray.remote(concurrency_groups=WORKER_GROUPS)(MadeUpWorker)
            super().__init__(*arguments)

    return MadeUpMaster


def startup(files: int) -> dict[str, float]:
    """Seconds until the first batch, and what of them goes where."""
    import ray

    import raycache
    from raycache.actors.names import master_options
    from raycache.config import load_settings

    with tempfile.TemporaryDirectory() as scratch:
        os.environ.update(RAYCACHE_STATE_DIR=str(Path(scratch) / "state"), RAYCACHE_MEM="1GB")
        ray.init(
            address="local", object_store_memory=max(4 << 30, 200 * files), include_dashboard=False,
            log_to_driver=False, logging_level="ERROR",
        )  # fmt: skip
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            settings = load_settings()
            actor = ray.remote(made_up_actors(files))
            actor.options(**master_options(settings.namespace)).remote(settings)
            raycache.init()
            raycache.dataset("train", MADE_UP)
            raycache.refresh("raycache://train", recursive=True)
            raycache.disconnect()
            return {f"{case}, {files:,} files": value for case, value in first_batches().items()}
        finally:
            raycache.shutdown()
            ray.shutdown()


def first_batches() -> dict[str, float]:
    """Of this process's first read, which maps the listings, and of its second."""
    import raycache

    found: dict[str, float] = {}
    for which in ("first", "second"):
        began = time.perf_counter()
        dataset = raycache.data.read_files("raycache://train")
        found[f"read_files, {which}"] = time.perf_counter() - began
        next(iter(dataset.iter_batches(batch_size=BATCH)))
        found[f"first batch, {which}"] = time.perf_counter() - began
    return found


if __name__ == "__main__":
    main()
