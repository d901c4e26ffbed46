"""Streaming datasets of others, each on its own format in S3, as ``loaders.py`` measures them beside ours.

    python benchmarks/streaming_peers.py write mosaicml DIRECTORY-OF-FILES OUT
    python benchmarks/streaming_peers.py read mosaicml s3://bucket/prefix CACHE WORKERS BATCH

``read`` keeps its DataLoader: each line on its standard input is an epoch, answered by a line of JSON. The first one
fills the peer's local cache. It needs ``pip install mosaicml-streaming litdata webdataset``, in an environment of its
own where their pins and those of Ray do not agree; ``loaders.py --peers-python`` names its interpreter.

MosaicML Streaming imports all of ``transformers`` and ``torchvision`` for datasets that are not used here: where they
are missing, empty modules take their place.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import tarfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

SHARD_BYTES = 64 * 2**20
PEERS = ("mosaicml", "litdata", "webdataset")


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules with any class that is asked for."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """See MetaPathFinder."""
        wanted = name.partition(".")[0] in self.names
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec: Any) -> types.ModuleType:
        """See Loader."""
        return Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """See Loader."""


class Empty(types.ModuleType):
    """Has every class, and nothing in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def main() -> None:
    """See the module."""
    absent = {name for name in ("transformers", "torchvision") if importlib.util.find_spec(name) is None}
    sys.meta_path.append(Absent(absent))
    verb, peer, *words = sys.argv[1:]
    if verb == "write":
        WRITERS[peer](Path(words[0]), Path(words[1]))
        return
    torch.set_num_threads(1)
    loader = READERS[peer](words[0], words[1], int(words[2]), int(words[3]))
    for line in sys.stdin:
        began = time.perf_counter()
        seen = sum(len(one) for one in loader(int(line)))
        print(json.dumps({"seconds": time.perf_counter() - began, "samples": seen}), flush=True)


def tensor(data: Any) -> Any:
    """As our datasets give a file that is not decoded."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def endpoint() -> str:
    """Where S3 is."""
    return os.environ["AWS_ENDPOINT_URL"]


# ---- MosaicML Streaming


def write_mosaicml(source: Path, out: Path) -> None:
    """MDS shards."""
    from streaming import MDSWriter

    with MDSWriter(out=str(out), columns={"data": "bytes"}, size_limit=SHARD_BYTES) as writer:
        for path in sorted(source.iterdir()):
            writer.write({"data": path.read_bytes()})


def read_mosaicml(remote: str, cache: str, workers: int, batch: int) -> Callable[[int], Any]:
    """StreamingDataset; it counts epochs by itself."""
    from streaming import StreamingDataset

    class Tensors(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            return tensor(super().__getitem__(at)["data"])

    os.environ["S3_ENDPOINT_URL"] = endpoint()
    dataset = Tensors(remote=remote, local=cache, shuffle=True, batch_size=batch, num_canonical_nodes=1)
    loader = DataLoader(dataset, batch_size=batch, num_workers=workers, persistent_workers=workers > 0)
    return lambda epoch: loader


# ---- LitData


def as_bytes(path: str) -> bytes:
    """A sample, for LitData to write."""
    return Path(path).read_bytes()


def write_litdata(source: Path, out: Path) -> None:
    """Chunks."""
    import litdata

    paths = [str(path) for path in sorted(source.iterdir())]
    litdata.optimize(
        as_bytes, paths, str(out), chunk_bytes=SHARD_BYTES, num_workers=2, start_method="fork", verbose=False
    )


def read_litdata(remote: str, cache: str, workers: int, batch: int) -> Callable[[int], Any]:
    """StreamingDataset with its own loader."""
    import litdata

    litdata.streaming.downloader._OBSTORE_AVAILABLE = False  # that way it refuses plain http; boto3 is its other one
    options = {"endpoint_url": endpoint(), "region_name": os.environ.get("AWS_DEFAULT_REGION", "us-east-1")}
    dataset = litdata.StreamingDataset(
        remote, cache_dir=cache, shuffle=True, storage_options=options, transform=tensor, max_cache_size="200GB"
    )
    loader = litdata.StreamingDataLoader(dataset, batch_size=batch, num_workers=workers)
    return lambda epoch: loader


# ---- WebDataset


def write_webdataset(source: Path, out: Path) -> None:
    """Tar files."""
    out.mkdir(parents=True)
    paths = sorted(source.iterdir())
    each = max(1, SHARD_BYTES // paths[0].stat().st_size)
    for number, start in enumerate(range(0, len(paths), each)):
        with tarfile.open(out / f"{number:05d}.tar", "w") as shard:
            for path in paths[start : start + each]:
                shard.add(path, f"{path.stem}.data")


def read_webdataset(remote: str, cache: str, workers: int, batch: int) -> Callable[[int], Any]:
    """WebDataset with its local cache. ``remote`` is a file with one URL per line."""
    import webdataset

    urls = [f"pipe:curl -s '{url}'" for url in Path(remote).read_text().split()]

    def named(url: str) -> str:
        return url.rpartition("/")[2].partition("?")[0]

    Path(cache).mkdir(parents=True, exist_ok=True)
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), cache_dir=cache, url_to_name=named, empty_check=False)
        .shuffle(1000)
        .map(lambda sample: tensor(sample["data"]))
    )
    loader = DataLoader(dataset, batch_size=batch, num_workers=workers, persistent_workers=workers > 0)
    return lambda epoch: loader


WRITERS = {"mosaicml": write_mosaicml, "litdata": write_litdata, "webdataset": write_webdataset}
READERS: dict[str, Callable[..., Callable[[int], Iterator[Any]]]] = {
    "mosaicml": read_mosaicml,
    "litdata": read_litdata,
    "webdataset": read_webdataset,
}

if __name__ == "__main__":
    main()
