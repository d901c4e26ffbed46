"""What a training loop gets: PyTorch's DataLoader over ext4, over the mount and over our datasets, Ray Data, and peers.

``loaders``: one file per sample, batches of raw bytes stacked into one tensor, nothing decoded, one thread of PyTorch.
DataLoader workers persist, and have read one epoch before the clock starts, so that neither their start nor the source
is measured; with 0 workers the main process reads. The page cache is dropped before each epoch: ext4 reads its disk,
the mount and our datasets what the cache's workers hold in memory, peers their own local caches, on ext4. Ray Data's
epochs begin with its own start-up, as they do in a job. CPU time is that of all processes below the one that measures,
or of a peer's, without the S3 server.

``ahead``: an epoch in random order of a source of which nothing is cached, with a sampler that tells the cache what is
wanted next, and with one that does not.

``startup``: until the first batch of a made-up source with millions of files.

Peers (MosaicML Streaming, LitData, WebDataset) are measured where ``--peers-python`` names an interpreter that has
them; see ``streaming_peers.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import report
import torch
import workload
from torch.utils.data import DataLoader, Dataset

from raycache.client.leases import LEASE_S
from raycache.testing import ObjectStoreServer
from raycache.testing.synthetic import SyntheticUfs

BATCH = 64
WORKERS = 2
BUCKET, PREFIX = "loaders", "train"
SOURCE = f"s3://{BUCKET}/{PREFIX}"
MADE_UP = "s3://synthetic/train"
PEERS = ("mosaicml", "litdata", "webdataset")
AHEAD_PACKS = 16


class Epoch(NamedTuple):
    """One that was measured."""

    rate: float
    """Samples per second."""
    cpu_ms: float
    """CPU time of a sample."""


Found = dict[str, list[Epoch]]


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=100_000, help="bytes per file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--startup-files", type=int, default=10_000_000)
    parser.add_argument("--peers-python", help="interpreter that has the peers")
    parser.add_argument("--parts", default="loaders,ahead,startup", help="which parts, comma separated")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line and write nothing")
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for part in arguments.parts.split(","):
        command = f"python benchmarks/loaders.py --parts {part}"
        title = f"Loaders: {part}"
        if part == "startup":
            measured: dict[str, Any] = startup(arguments.startup_files)
            text = report.table(["seconds", ""], [[case, f"{value:,.2f}"] for case, value in measured.items()])
            command += f" --startup-files {arguments.startup_files}"
        else:
            run = {"loaders": loaders, "ahead": ahead}[part]
            measured = run(arguments)
            about = f"{arguments.files:,} files of {arguments.size / 1000:.0f} kB, batches of {BATCH}"
            text = f"{about}; S3 is SeaweedFS on the same machine. Median (range).\n\n" + describe(measured)
            command += f" --files {arguments.files} --size {arguments.size} --rounds {arguments.rounds}"
            command += " --peers-python PYTHON" if arguments.peers_python and part == "loaders" else ""
            title += f", {arguments.files:,} files of {arguments.size / 1000:.0f} kB" if part == "loaders" else ""
        found |= measured
        print(text, flush=True)
        if not arguments.json:
            report.write_section(title, command, text)
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


def loaders(arguments: argparse.Namespace) -> Found:
    """Epochs by case, one per round."""
    files: int = arguments.files
    found: Found = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch, ObjectStoreServer() as server:
        home = Path(scratch)
        names = stored(server, home, files, arguments.size)
        with ExitStack() as stack:
            peers = [
                stack.enter_context(Peer(arguments.peers_python, peer, server, home, workers, files))
                for peer in PEERS if arguments.peers_python for workers in (WORKERS, 0)
            ]  # fmt: skip
            with cached(files * arguments.size, server, home):
                import raycache

                (home / "mnt").mkdir()
                with raycache.mount(SOURCE, home / "mnt"):
                    os.listdir(home / "mnt")
                    torch_cases(home, names, peers, arguments.rounds, found)
                    ray_cases(server, files, arguments.rounds, found)
    return dict(found)


def stored(server: ObjectStoreServer, home: Path, files: int, size_bytes: int) -> list[str]:
    """Files on ext4, and in a bucket; their names."""
    names = workload.make_files(home / "ext4", files, size_bytes)
    server.create_bucket(BUCKET)
    workload.upload(server, BUCKET, home / "ext4", PREFIX)
    return names


@contextmanager
def cached(size_bytes: int, server: ObjectStoreServer, home: Path) -> Iterator[None]:
    """A Ray with a cache that has room for so much."""
    import ray

    import raycache

    os.environ.update(server.environ, RAYCACHE_STATE_DIR=str(home / "state"), RAYCACHE_MEM="50%")
    ray.init(
        address="local", object_store_memory=int(2.4 * size_bytes) + (512 << 20), include_dashboard=False,
        log_to_driver=False, logging_level=logging.ERROR,
    )  # fmt: skip
    try:
        os.environ["RAYCACHE_ADDRESS"] = ray.get_runtime_context().gcs_address  # for processes that are started here
        ray.data.DataContext.get_current().enable_progress_bars = False
        raycache.init()
        yield
    finally:
        raycache.shutdown()
        ray.shutdown()


def torch_cases(home: Path, names: list[str], peers: list[Peer], rounds: int, found: Found) -> None:
    """DataLoaders whose workers live through all rounds, which are interleaved."""
    from raycache.data.torch import FileDataset, StreamDataset

    stream = StreamDataset(SOURCE)
    cases: dict[str, tuple[Any, bool]] = {
        "ext4": (LocalFiles([str(home / "ext4" / name) for name in names]), True),
        "mount": (LocalFiles([str(home / "mnt" / name) for name in names]), True),
        "FileDataset": (FileDataset(SOURCE), True),
        "StreamDataset": (stream, False),
    }
    made = {
        f"{case}, {workers} workers": DataLoader(
            cases[case][0], BATCH, shuffle=True if cases[case][1] else None, num_workers=workers,
            multiprocessing_context="forkserver" if workers else None, persistent_workers=workers > 0,
        )
        for workers in (WORKERS, 0) for case in cases
    }  # fmt: skip
    for number in range(rounds + 1):
        stream.set_epoch(number)
        for case, loader in made.items():
            workload.drop_page_cache()
            epoch = timed(lambda loader=loader: map(len, loader), len(names))  # type: ignore[misc]
            if number:
                found[case].append(epoch)
        for peer in peers:
            workload.drop_page_cache()
            epoch = peer.epoch(number)
            if number:
                found[peer.name].append(epoch)


class Peer:
    """A streaming dataset of others, read by a process of its own."""

    def __init__(self, python: str, peer: str, server: ObjectStoreServer, home: Path, workers: int, files: int) -> None:
        self.name = f"{peer}, {workers} workers"
        self._files = files
        self._environ = {**os.environ, **server.environ}
        self._words = [python, str(Path(__file__).with_name("streaming_peers.py"))]
        own = home / peer
        if not own.exists():
            self._run("write", peer, str(home / "ext4"), str(own))
            workload.upload(server, BUCKET, own, peer)
        remote = f"s3://{BUCKET}/{peer}"
        if peer == "webdataset":
            remote = str(home / "urls")
            Path(remote).write_text(
                "\n".join(signed(server, f"{peer}/{shard.name}") for shard in sorted(own.iterdir()))
            )
        words = ["read", peer, remote, str(home / f"{peer}-{workers}-cache"), str(workers), str(BATCH)]
        self._log = (home / f"{peer}-{workers}.log").open("wb")
        self.process = subprocess.Popen(
            [*self._words, *words], env=self._environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True,
        )  # fmt: skip

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._log.close()

    def epoch(self, number: int) -> Epoch:
        """Read one. Raises RuntimeError when it did not have all files."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        before = workload.cpu_s(self.process.pid)
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        said: dict[str, Any] = json.loads(line) if line else {"samples": None}
        if said["samples"] != self._files:
            raise RuntimeError(f"{self.name}: {said}; see {self._log.name}")
        cpu_s = workload.cpu_s(self.process.pid) - before
        return Epoch(self._files / said["seconds"], 1000 * cpu_s / self._files)

    def _run(self, *words: str) -> None:
        done = subprocess.run([*self._words, *words], env=self._environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {done.stderr}")


def signed(server: ObjectStoreServer, key: str) -> str:
    """A URL that needs no credentials."""
    where = {"Bucket": BUCKET, "Key": key}
    return str(server.client().generate_presigned_url("get_object", Params=where, ExpiresIn=86_400))


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


def timed(read: Callable[[], Iterator[int]], files: int) -> Epoch:
    """An epoch, which must have all files."""
    before, began = own_cpu_s(), time.perf_counter()
    seen = sum(read())
    took_s = time.perf_counter() - began
    if seen != files:
        raise RuntimeError(f"{seen} of {files} files were read")
    return Epoch(files / took_s, 1000 * (own_cpu_s() - before) / files)


def own_cpu_s() -> float:
    """Of this process and what it has started, Ray included, but for the S3 server and the peers."""
    return workload.cpu_s(os.getpid(), without=("weed", "streaming_peers.py"))


def describe(found: Found) -> str:
    """The section's tables."""
    rows = [
        [case, report.spread([one.rate for one in epochs]), report.spread([one.cpu_ms for one in epochs], ".3f")]
        for case, epochs in found.items()
    ]
    cases = [(over, under) for over, unders in COMPARED.items() for under in unders]
    compared = [
        [f"{over} / {under}", report.spread(ratios(found[over], found[under]), ".2f")]
        for over, under in [(f"{one}{way}", f"{other}{way}") for one, other in cases for way in WAYS]
        if over in found and under in found
    ]
    return (
        report.table(["", "samples per second", "CPU ms per sample"], rows)
        + "\n\n"
        + report.table(["ratio of samples per second", "median (range)"], compared)
    )


WAYS = (f", {WORKERS} workers", ", 0 workers", "")
COMPARED = {
    "mount": ["ext4"],
    "FileDataset": ["ext4", "mosaicml", "litdata", "webdataset"],
    "StreamDataset": ["ext4", "mosaicml", "litdata", "webdataset"],
    "Ray Data, fsspec": ["Ray Data, S3"],
    "Ray Data, read_files": ["Ray Data, S3"],
    "told ahead": ["not told"],
}


def ratios(over: list[Epoch], under: list[Epoch]) -> list[float]:
    """Of epochs that were measured side by side."""
    return report.ratios([one.rate for one in over], [one.rate for one in under])


# ---- an epoch of which nothing is cached


def ahead(arguments: argparse.Namespace) -> Found:
    """Epochs by case, one per round."""
    from raycache.data.torch import EpochSampler, FileDataset

    found: Found = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch, ObjectStoreServer() as server:
        home = Path(scratch)
        stored(server, home, arguments.files, arguments.size)
        with cached(arguments.files * arguments.size, server, home):
            import raycache

            dataset = FileDataset(SOURCE)
            cases = {"not told": EpochSampler(dataset), "told ahead": EpochSampler(dataset, ahead=AHEAD_PACKS)}
            for number, (case, sampler) in itertools.product(range(arguments.rounds), cases.items()):
                sampler.set_epoch(number)
                raycache.free(SOURCE)
                time.sleep(2 * LEASE_S)  # after that this process holds none of it either
                loader = DataLoader(
                    dataset, BATCH, sampler=sampler, num_workers=WORKERS, multiprocessing_context="forkserver"
                )
                found[case].append(timed(lambda loader=loader: map(len, loader), arguments.files))  # type: ignore[misc]
    return dict(found)


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
    from raycache.ufs import registry, sources

    def make_up() -> None:
        made, open_real = MadeUp(MADE_UP, files), registry.open_ufs
        for module in (sources, metadata):
            module.open_ufs = (  # type: ignore[attr-defined]
                lambda uri, *rest: made if uri == MADE_UP else open_real(uri, *rest)
            )

    class MadeUpWorker(WorkerActor):
        def __init__(self, *arguments: Any) -> None:
            make_up()
            super().__init__(*arguments)

    class MadeUpMaster(MasterActor):
        def __init__(self, *arguments: Any) -> None:
            make_up()
            remote: Any = ray.remote
            fleet._REMOTE_WORKER = remote(concurrency_groups=WORKER_GROUPS)(MadeUpWorker)
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
            log_to_driver=False, logging_level=logging.ERROR,
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
    from raycache.data.torch import FileDataset, StreamDataset

    found: dict[str, float] = {}
    for which in ("first", "second"):
        for kind in (FileDataset, StreamDataset):
            for workers in (0, WORKERS):
                began = time.perf_counter()
                dataset = kind("raycache://train")
                loader = DataLoader(
                    dataset, BATCH, shuffle=True if kind is FileDataset else None, collate_fn=len, num_workers=workers,
                    multiprocessing_context="forkserver" if workers else None,
                )  # fmt: skip
                next(iter(loader))
                found[f"{kind.__name__}, {workers} workers, {which}"] = time.perf_counter() - began
        began = time.perf_counter()
        read = raycache.data.read_files("raycache://train")
        next(iter(read.iter_batches(batch_size=BATCH)))
        found[f"read_files, {which}"] = time.perf_counter() - began
    return found


if __name__ == "__main__":
    main()
