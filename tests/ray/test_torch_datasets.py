"""PyTorch datasets on a real Ray: the same bytes whatever starts the workers, and epochs that anybody can resume."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import raycache
from raycache.actors.cluster import current
from raycache.config import load_settings
from raycache.core.placement import rank
from raycache.data.decoding import decode_audio, decode_image
from raycache.data.torch import EpochSampler, FileDataset, StreamDataset, merge_states
from raycache.errors import InvalidInput
from raycache.fuse.mount import list_mounts

FILES = 150


@pytest.fixture(scope="module")
def cache(ray_address: str) -> Iterator[Any]:
    """One cache for all of these tests: they only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYCACHE_NAMESPACE", "test-torch")
        patch.setenv("RAYCACHE_ADDRESS", ray_address)
        raycache.disconnect()
        yield current(load_settings())
        raycache.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(7)
    root = tmp_path_factory.mktemp("torch") / "data"
    for number in range(FILES):
        path = root / f"class{number % 3}" / f"{number:04d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(4000)))
    return root


def wanted(source: Path) -> dict[str, bytes]:
    return {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*.bin")}


def as_pair(buffer: memoryview, path: str) -> tuple[str, bytes]:
    assert buffer.readonly
    return path, bytes(buffer)


def as_path(buffer: memoryview, path: str) -> str:
    return path


def as_is(batch: list[Any]) -> list[Any]:
    return batch


def loader(dataset: Any, method: str | None = "fork", workers: int = 2, kind: Any = DataLoader, **options: Any) -> Any:
    if workers == 0:
        return kind(dataset, batch_size=8, collate_fn=as_is, **options)
    return kind(
        dataset,
        batch_size=8,
        collate_fn=as_is,
        num_workers=workers,
        multiprocessing_context=method,
        timeout=100,
        **options,
    )


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_workers_read_the_same_bytes_however_they_are_started(cache: Any, source: Path, method: str) -> None:
    """Forked ones through a mount that is made for them, the others through a connection of their own."""
    dataset = FileDataset(str(source), as_pair)
    got = [sample for batch in loader(dataset, method, shuffle=True) for sample in batch]
    assert len(got) == FILES
    assert dict(got) == wanted(source)
    views = [about for about in list_mounts(cache.settings) if about["snapshot"] == dataset.change]
    assert len(views) == (method == "fork")
    assert dict(as_is([dataset[number] for number in range(FILES)])) == wanted(source), "the parent is none the worse"


def test_a_dataset_is_a_list_of_files(cache: Any, source: Path) -> None:
    dataset = FileDataset(str(source), pattern="class1/*")
    assert len(dataset) == len(dataset.paths()) == FILES / 3
    sample = dataset[-1]
    assert sample.dtype == torch.uint8
    assert sample.numpy().tobytes() == (source / dataset.paths([-1])[0]).read_bytes()
    assert dataset.__getitems__([]) == []
    for number in (FILES, -FILES):
        with pytest.raises(IndexError):
            dataset[number]


def test_a_dataset_shows_what_was_listed_when_it_was_made(cache: Any, tmp_path: Path) -> None:
    (tmp_path / "old.bin").write_bytes(b"old")
    dataset = FileDataset(str(tmp_path), as_pair)
    stream = StreamDataset(str(tmp_path), as_path)
    state = stream.state_dict()
    (tmp_path / "new.bin").write_bytes(b"new")
    raycache.refresh(str(tmp_path))
    assert dataset.paths() == ["old.bin"]
    now = StreamDataset(str(tmp_path), as_path)
    assert len(now) == 2
    now.load_state_dict(state)
    assert (now.change, list(now)) == (stream.change, ["old.bin"]), "a state brings its files with it"
    assert FileDataset(str(tmp_path), change=dataset.change).paths() == ["old.bin"]


def test_ranks_read_what_their_nodes_keep(cache: Any, source: Path) -> None:
    """Three nodes, as far as placement goes: each rank's share is its node's, and any other ranks go on with it."""
    (mine,) = cache.pool.workers()
    workers = [replace(mine, worker_id=name, node_id=f"node-{name}") for name in "abc"]
    nodes = ["node-b", "node-b", "node-a", "node-c"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache.pool, "workers", lambda refresh=False: workers)
        streams = [StreamDataset(str(source), as_path, window=1, rank=at, ranks=4, near=nodes) for at in range(4)]
    files = streams[0]._files
    manifests, packs = files.selection.manifests, files.packs
    node_of_class = {
        manifests[part].directory.path: rank(manifests[part].block_id(block), workers)[0].node_id
        for part, block in zip(packs.part.tolist(), packs.block.tolist(), strict=True)
    }
    assert len(node_of_class) == 3, "a pack each"
    read = [path for stream in streams for path in stream]
    assert sorted(read) == sorted(wanted(source))
    order = [["node-b", "node-a", "node-c"].index(node_of_class[path.partition("/")[0]]) for path in read]
    assert order == sorted(order)
    state = streams[0].state_after(3, 8)
    assert json.loads(json.dumps(state)) == state
    taken = [path for stream in streams for path in list(stream)[:24]]
    rest = StreamDataset(str(source), as_path, window=1)
    rest.load_state_dict(state)
    assert sorted([*taken, *rest]) == sorted(wanted(source)), "on another cluster, in the order that it was"
    with pytest.raises(InvalidInput, match="names the nodes of 1 ranks, and there are 2"):
        StreamDataset(str(source), rank=0, ranks=2, near=["node-a"])
    with pytest.raises(InvalidInput, match=r"over torch.distributed"):
        StreamDataset(str(source), rank=0, ranks=2, near=True)
    assert sorted(StreamDataset(str(source), as_path, near=True)) == sorted(wanted(source))


def test_a_sampler_that_is_told_the_cache(cache: Any, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file once per epoch, whatever the ranks; and packs are announced once, in time."""
    dataset = FileDataset(str(source), as_path)
    packs = dataset._files.packs.files
    told: list[int] = []
    monkeypatch.setattr(dataset._files, "expect", told.extend)
    samplers = [EpochSampler(dataset, seed=4, rank=rank, ranks=3, ahead=2) for rank in range(3)]
    for sampler in samplers:
        sampler.set_epoch(1)
    shares = [list(sampler) for sampler in samplers]
    assert [len(share) for share in shares] == [len(sampler) for sampler in samplers] == [FILES / 3] * 3
    assert sorted(number for share in shares for number in share) == list(range(FILES))
    pack_of = torch.repeat_interleave(torch.arange(len(packs)), torch.from_numpy(packs)).tolist()
    assert told == [pack for share in shares for pack in dict.fromkeys(pack_of[number] for number in share)]
    told.clear()
    plain = EpochSampler(dataset, seed=4)
    assert sorted(path for batch in loader(dataset, "forkserver", sampler=plain) for path in batch) == sorted(
        wanted(source)
    )
    plain.set_epoch(1)
    assert list(plain) == [number for share in shares for number in share], "the same order, cut"
    assert told == []
    for wrong in ({"rank": 1}, {"ahead": -1}, {"seed": -1}):
        with pytest.raises(InvalidInput):
            EpochSampler(dataset, **wrong)


def test_files_are_decoded_by_libraries(cache: Any, tmp_path: Path) -> None:
    Image.fromarray(np.full((6, 5), 7, np.uint8)).save(tmp_path / "grey.png")
    soundfile.write(tmp_path / "tone.wav", np.full((100, 2), 0.25, np.float32), 8000)
    (image,) = FileDataset(str(tmp_path), decode_image, pattern="*.png")
    assert (image.shape, image.dtype, int(image.max())) == ((3, 6, 5), torch.uint8, 7)
    ((samples, rate),) = FileDataset(str(tmp_path), decode_audio, pattern="*.wav")
    assert (samples.shape, samples.dtype, rate) == ((2, 100), torch.float32, 8000)
    assert torch.allclose(samples, torch.tensor(0.25))


@pytest.fixture(scope="module")
def mounted(cache: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with raycache.mount(str(source), tmp_path_factory.mktemp("mnt")):
        yield source


def test_an_epoch_is_split_and_resumed_by_another_number_of_ranks(mounted: Path) -> None:
    """Two ranks with two workers each stop after 3 and 4 batches; three without workers go on."""
    seen: Counter[str] = Counter()
    states = []
    for at in range(2):
        stream = StreamDataset(str(mounted), as_path, seed=3, window=1, rank=at, ranks=2)
        stream.set_epoch(5)
        loading = loader(stream, kind=StatefulDataLoader)
        batches = iter(loading)
        for _ in range(3 + at):
            seen.update(next(batches))
        states.append({"loader": loading.state_dict(), "model": torch.zeros(1)})
        del batches
    assert sum(seen.values()) == 7 * 8
    with pytest.raises(InvalidInput, match="missing"):
        merge_states(states[:1])
    for at in range(3):
        stream = StreamDataset(str(mounted), as_path, seed=3, window=1, rank=at, ranks=3)
        stream.load_state_dict(merge_states(states))
        assert len(stream) in (31, 32)
        seen.update(stream)
    assert seen == Counter(wanted(mounted).keys())


def test_a_stateful_loader_goes_on_where_it_was(mounted: Path) -> None:
    first = loader(StreamDataset(str(mounted), as_path, seed=1), kind=StatefulDataLoader)
    batches = iter(first)
    before = [path for _ in range(5) for path in next(batches)]
    state = first.state_dict()
    after = [path for batch in batches for path in batch]
    second = loader(StreamDataset(str(mounted), as_path, seed=1), kind=StatefulDataLoader)
    second.load_state_dict(state)
    assert [path for batch in second for path in batch] == after
    assert sorted(before + after) == sorted(wanted(mounted))


def test_a_plain_loader_is_resumed_by_arithmetic_and_workers_that_persist_hear_of_epochs(mounted: Path) -> None:
    stream = StreamDataset(str(mounted), as_path, seed=1, window=2)
    loading = loader(stream, persistent_workers=True, pin_memory=True)
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        epochs.append([path for batch in loading for path in batch])
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(wanted(mounted))
    again = StreamDataset(str(mounted), as_path, seed=1, window=2)
    again.load_state_dict({**stream.state_after(5, 8, workers=2)})
    rest = [path for batch in loader(again, workers=0) for path in batch]
    assert again.epoch == 1
    assert sorted(epochs[1][:40] + rest) == sorted(wanted(mounted))


def test_a_loop_without_workers_says_at_every_sample_what_is_left(cache: Any, source: Path) -> None:
    stream = StreamDataset(str(source), as_path)
    order = list(stream)
    for stop in (1, 70, FILES):
        samples = iter(stream)
        assert [next(samples) for _ in range(stop)] == order[:stop]
        again = StreamDataset(str(source), as_path)
        again.load_state_dict(stream.state_dict())
        assert list(again) == order[stop:]


def test_what_is_no_rank_and_no_state_of_it_is_refused(
    cache: Any, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = StreamDataset(str(source))
    with pytest.raises(InvalidInput):
        StreamDataset(str(source), rank=1)
    with pytest.raises(InvalidInput):
        len(StreamDataset(str(source), rank=2, ranks=2))
    with pytest.raises(InvalidInput, match="seed=0"):
        StreamDataset(str(source), seed=1).load_state_dict(stream.state_dict())
    with pytest.raises(InvalidInput):
        stream.set_epoch(-1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert len(stream) == 38
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(InvalidInput, match="RANK=x"):
        len(stream)


def test_ranks_that_train_in_step_get_the_same_number_of_samples(cache: Any, source: Path) -> None:
    for even, sizes in ((True, [21] * 7), (False, [22] * 3 + [21] * 4)):
        streams = [StreamDataset(str(source), as_path, even=even, rank=rank, ranks=7) for rank in range(7)]
        assert [len(stream) for stream in streams] == sizes
        read = [path for stream in streams for path in stream]
        assert len(read) == len(set(read)) == sum(sizes)
