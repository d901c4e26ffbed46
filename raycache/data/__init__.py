"""Ways into the cache for programs that know Ray Data and PyTorch: bytes without a copy, whole batches per call.

    raycache.data.read_files("s3://bucket/train", pattern="**/*.jpg").map(decode).iter_torch_batches(batch_size=64)
    raycache.data.read_images("s3://bucket/train"), read_parquet(...), read_csv(...) ...
    raycache.data.cached("s3://bucket/train", decode, "raycache://train/_decoded") computes each pack once
    raycache.data.write_parquet(dataset, "raycache://train/features", mode="overwrite")
    raycache.data.torch.FileDataset("s3://bucket/train", decode)
    raycache.data.enable(); ray.data.read_parquet("s3://bucket/train"), pandas.read_csv("s3://bucket/train/a.csv") ...

``read_files`` and ``read_binary_files`` are our own: their tasks are packs and run on the node that keeps them. The
others are Ray Data's, with our file system; they take what ``ray.data`` takes beside it. Paths are URIs of a source or
``raycache://dataset/path``; a source that is no dataset yet becomes one, with its storage ``options``. ``change``: show
files as of that change number (``raycache.snapshot``).

Importing this module imports neither Ray nor torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyarrow.fs import PyFileSystem
    from ray.data import Dataset

Reader = Callable[..., "Dataset"]
Writer = Callable[..., None]


def read_files(
    uri: str,
    *,
    pattern: str = "**",
    include_paths: bool = True,
    options: Mapping[str, Any] | None = None,
    change: int | None = None,
    **arguments: Any,
) -> Dataset:
    """Whole files below a directory that match ``pattern``, as rows of ``bytes`` and ``path`` (below the directory).

    Files are read pack by pack, each on the node that keeps it, as they were listed when this was called. ``arguments``
    are those of ``ray.data.read_datasource``: ``concurrency``, ``override_num_blocks``, ``num_cpus`` ... The driver
    holds an array of numbers; ten million files begin to be read as soon as ten thousand.

    Raises InvalidInput, NotFound, NotADirectory, and what listing a source raises; a task raises what reading raises.
    """
    from raycache.data.sources import read_whole_files

    return read_whole_files(
        uri, pattern=pattern, include_paths=include_paths, options=options, change=change, arguments=arguments
    )


def cached(
    uri: str,
    transform: Callable[[Any], Any],
    to: str,
    *,
    key: str | None = None,
    pattern: str = "**",
    include_paths: bool = True,
    batch_format: str = "numpy",
    write_type: str = "",
    options: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Dataset:
    """``read_files(uri).map_batches(transform)``, of which the results are kept: what is there is read, not computed.

        spectra = raycache.data.cached("s3://bucket/train", to_spectra, "raycache://train/_spectra")
        for epoch in range(5):
            for batch in spectra.iter_torch_batches(batch_size=256): ...

    The first time through, rows are handed on as they are computed and written beside it. The next epoch, and the next
    job, read them; after ``raycache.refresh`` (and calling this again) only packs are computed of which files changed.

    ``transform``: makes a batch of a batch of ``bytes`` and ``path``, as for ``map_batches``, a pack or a part of it at
    a time; what it makes must depend on nothing else. A class is made once per process, and called.
    ``to``: directory of the cache for the results, one below it for each transformation: remove what is not used any
    more. Its files are not taken for files of ``uri``. ``write_type``: see ``raycache.open``.
    ``key``: what the transformation does, by name; left out, its code is looked into, with what it calls outside of
    installed packages (``raycache.core.fingerprint``). Another key, or other code, computes all anew.
    ``batch_format``: ``numpy``, ``pandas`` or ``pyarrow``. ``arguments``: as for ``read_files``; ``ray_remote_args``
    has GPUs.

    Raises InvalidInput (among others: no key can be made of the code), NotFound, NotADirectory; a task raises what
    reading, computing or writing raises, and the results of its pack are then not there.
    """
    from raycache.data.results import read_cached

    return read_cached(
        uri, transform, to, key=key, pattern=pattern, include_paths=include_paths, batch_format=batch_format,
        write_type=write_type, options=options, arguments=arguments,
    )  # fmt: skip


def read_binary_files(uri: str, *, include_paths: bool = False, **arguments: Any) -> Dataset:
    """``read_files`` under the name, and with the columns, of ``ray.data.read_binary_files``."""
    return read_files(uri, include_paths=include_paths, **arguments)


def _reader(name: str) -> Reader:
    def read(
        uris: str | Sequence[str],
        *,
        options: Mapping[str, Any] | None = None,
        change: int | None = None,
        **arguments: Any,
    ) -> Dataset:
        from raycache.data.sources import read_with

        return read_with(name, uris, options=options, change=change, arguments=arguments)

    read.__name__ = read.__qualname__ = name
    read.__doc__ = f"``ray.data.{name}`` of files or directories of the cache; it takes the same arguments."
    return read


read_audio = _reader("read_audio")
read_avro = _reader("read_avro")
read_csv = _reader("read_csv")
read_images = _reader("read_images")
read_json = _reader("read_json")
read_numpy = _reader("read_numpy")
read_parquet = _reader("read_parquet")
read_text = _reader("read_text")
read_tfrecords = _reader("read_tfrecords")
read_videos = _reader("read_videos")
read_webdataset = _reader("read_webdataset")


def _writer(name: str) -> Writer:
    def write(dataset: Dataset, uri: str, *, mode: str = "append", **arguments: Any) -> None:
        from raycache.data.sinks import write_with

        write_with(name, dataset, uri, mode, arguments)

    write.__name__ = write.__qualname__ = name
    write.__doc__ = (
        f"``Dataset.{name}`` to a directory of the cache, of which nothing is seen until all is written, and nothing "
        "when that fails. ``mode``: ``append``, ``overwrite`` or ``error``, see ``raycache.together``; the other "
        "arguments are those of Ray Data."
    )
    return write


write_csv = _writer("write_csv")
write_images = _writer("write_images")
write_json = _writer("write_json")
write_numpy = _writer("write_numpy")
write_parquet = _writer("write_parquet")
write_tfrecords = _writer("write_tfrecords")
write_webdataset = _writer("write_webdataset")


def arrow_filesystem(*, snapshot: int | None = None, write_type: str = "") -> PyFileSystem:
    """The ``pyarrow.fs`` file system: ``pyarrow.dataset.dataset("train/tables", filesystem=...)``, ``write_dataset``.

    Reads copy nothing where a block is mapped here. Paths are ``dataset/path`` or URIs. ``snapshot``: a change number
    to show everything at; ``write_type``: see ``raycache.open``.
    """
    from raycache.data.arrow import arrow_filesystem as make

    return make(snapshot, write_type)


def enable(schemes: Iterable[str] = ("s3",)) -> None:
    """From now on this process reads URIs of these schemes through the cache, where they belong to a dataset of it.

    Whatever resolves URIs with fsspec or pyarrow: any ``ray.data.read_*``, ``pyarrow.dataset``, pandas' ``read_csv``.
    It reads what the cache shows: ``raycache.refresh`` what changed. All else, and every write, goes where it always
    went. ``raycache.data.enabling`` says what is replaced to that end. Ray Data's read tasks are covered wherever they
    run; to have other code of all processes of a job covered, ``ray.init(runtime_env={"worker_process_setup_hook":
    "raycache.data.enable"})``. Raises InvalidInput for a scheme that cannot be enabled; a URI is resolved with the
    errors of connecting to the cache.
    """
    from raycache.data.enabling import enable as begin

    begin(schemes)


def disable() -> None:
    """Undo ``enable``. What was opened stays open."""
    from raycache.data.enabling import disable as end

    end()


def enable_job(runtime_env: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """``enable`` by a variable, without a line of code: RAY_RUNTIME_ENV_HOOK=raycache.data.enable_job.

    Ray calls what this variable names when a program connects to it, and takes the runtime environment that it returns:
    the program and all processes of its job are enabled. Raises InvalidInput where another hook is in the way.
    """
    from raycache.data.enabling import enable_job as begin

    return begin(runtime_env)


def __getattr__(name: str) -> Any:
    if name == "torch":  # ``raycache.data.torch`` without an import of its own
        return importlib.import_module("raycache.data.torch")
    raise AttributeError(f"module 'raycache.data' has no attribute {name!r}")
