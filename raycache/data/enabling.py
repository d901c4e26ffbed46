"""Programs whose URIs stay as they are, through the cache: what ``raycache.data.enable`` changes in a process.

Two things are replaced, for URIs of the schemes that were enabled, and put back by ``disable``:

* fsspec's registration of these schemes (``fsspec.register_implementation``). Whatever resolves a URI with fsspec
  (``fsspec.open``, ``url_to_fs``, pandas' ``read_csv``, Dask ...) gets a file system that reads from the cache, if a
  dataset has the URI. What asks for a file system without a URI (``fsspec.filesystem("s3")``, ``s3fs.S3FileSystem()``)
  gets what it always got, and so does the cache itself when it reads its sources.
* the function by which pyarrow resolves a path to a file system (``pyarrow.fs._resolve_filesystem_and_path``). Ray
  Data's ``read_*``, ``pyarrow.dataset`` and ``pyarrow.parquet`` use it. A file system that is given goes before.

Not replaced, as they resolve in native code: ``pyarrow.fs.FileSystem.from_uri`` (pandas' ``read_parquet`` calls it),
and Ray Data's readers of tables that bring their own client (Iceberg, Lance, Delta) and its ``download`` expression.

What such a file system is sent to, a read task for one, needs nothing of this: it is pickled with the cache that it
belongs to. Threading: safe.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import fsspec
import pyarrow.fs
from fsspec.spec import _Cached

from raycache.data.sourcefs import source_filesystem
from raycache.errors import InvalidInput

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "oss")
"""Schemes whose URI is the scheme before what fsspec calls the path, so that one can be made of the other."""
_BY_URI = "raycache"
"""Argument with which fsspec is made to ask for our file system."""
_RESOLVE = "_resolve_filesystem_and_path"
_lock = threading.Lock()
_originals: dict[str, Any] = {}
"""Class that was registered, by scheme that is enabled."""
_resolve_original: Any = getattr(pyarrow.fs, _RESOLVE, None)


class _ByUri(_Cached):  # type: ignore[misc]
    """Of a class that is registered. Its instances are its base's, or ours where fsspec came from a URI we know."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        if options.pop(_BY_URI, False):
            return source_filesystem(self.protocol, options)
        return self.__base__(*args, **options)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self.__base__)


def enable(schemes: Iterable[str] = ("s3",)) -> None:
    """See ``raycache.data.enable``."""
    wanted = list(schemes)
    wrong = [scheme for scheme in wanted if scheme not in SCHEMES]
    if wrong:
        raise InvalidInput(f"{', '.join(wrong)}: can be enabled for {', '.join(SCHEMES)}; use raycache:// URIs else")
    if _resolve_original is None:
        raise InvalidInput(f"pyarrow {pyarrow.__version__} resolves paths in a way that is not known here; use "
                           "raycache:// URIs with filesystem=raycache.filesystem()")  # fmt: skip
    with _lock:
        for scheme in wanted:
            if scheme not in _originals:
                _originals[scheme] = _register(scheme)
        _replace(_resolve_original, _resolve)


def disable() -> None:
    """See ``raycache.data.disable``."""
    with _lock:
        for scheme, original in _originals.items():
            fsspec.register_implementation(scheme, original, clobber=True)
        _originals.clear()
        _replace(_resolve, _resolve_original)


def enable_job(runtime_env: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """See ``raycache.data.enable_job``."""
    enable()
    found: MutableMapping[str, Any] = {} if runtime_env is None else dict(runtime_env)
    hook = found.setdefault("worker_process_setup_hook", "raycache.data.enable")
    if hook != "raycache.data.enable":
        raise InvalidInput(f"this job has a worker_process_setup_hook, {hook}: have it call raycache.data.enable()")
    return found


def _register(scheme: str) -> Any:
    original: Any = fsspec.get_filesystem_class(scheme)
    ours = source_filesystem(scheme)

    def from_url(url: str) -> dict[str, Any]:
        options = dict(original._get_kwargs_from_urls(url))
        return {**options, _BY_URI: True} if ours.knows(url) else options

    members = {"protocol": scheme, "_get_kwargs_from_urls": staticmethod(from_url)}
    fsspec.register_implementation(scheme, _ByUri(original.__name__, (original,), members), clobber=True)
    return original


def _resolve(path: Any, filesystem: Any = None, **options: Any) -> Any:
    """In the place of pyarrow's function."""
    scheme, separator, rest = path.partition("://") if isinstance(path, str) else ("", "", "")
    if filesystem is None and separator and scheme in _originals and "?" not in rest:
        ours = source_filesystem(scheme)
        if ours.knows(path):
            return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(ours)), ours._strip_protocol(path)
    return _resolve_original(path, filesystem, **options)


def _replace(old: Any, new: Any) -> None:
    """In pyarrow's modules, some of which have imported the function by its name."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "pyarrow" and getattr(module, _RESOLVE, None) is old:
            setattr(module, _RESOLVE, new)
