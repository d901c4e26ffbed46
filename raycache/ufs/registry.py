"""From a source URI to an open adapter: the one table of schemes."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from raycache.core.paths import RAYCACHE_SCHEME, Location, parse_uri
from raycache.errors import InvalidInput
from raycache.ufs.base import Limits, UnderFileSystem
from raycache.ufs.credentials import capture

OBJECT_SCHEMES = {
    "s3": "s3", "s3a": "s3",
    "gs": "gs", "gcs": "gs",
    "az": "az", "azure": "az", "abfs": "az", "abfss": "az", "adl": "az",
    "http": "http", "https": "http",
    "memory": "memory",
}  # fmt: skip
"""Schemes that obstore serves. Everything else that fsspec knows goes through the fsspec adapter."""

_USUAL = ["s3", "gs", "az", "hdfs", "oss", "http", "https", "file", "ftp", "sftp", "memory"]
"""What a mistyped scheme is compared with before the hundred others that fsspec lists."""


def open_ufs(source: str, options: Mapping[str, Any] | None = None, limits: Limits | None = None) -> UnderFileSystem:
    """Open the under file system that holds ``source``. Makes no request.

    Raises InvalidInput for a scheme nobody knows, a missing package, or options that the store does not take.
    """
    location, limits = parse_uri(source), limits or Limits()
    check_scheme(location)
    if location.scheme == "file":
        from raycache.ufs.local import LocalUfs

        return LocalUfs(location)
    if location.scheme in OBJECT_SCHEMES:
        from raycache.ufs.object import open_object_ufs

        return open_object_ufs(location, OBJECT_SCHEMES[location.scheme], dict(options or {}), limits)
    from raycache.ufs.generic import FsspecUfs

    return FsspecUfs(location, dict(options or {}), limits)


def capture_access(source: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """What reaches ``source``: the user's options over what the environment says of its store. Holds secrets.

    Raises InvalidInput for an option that the store does not take.
    """
    return capture(OBJECT_SCHEMES.get(parse_uri(source).scheme, ""), options)


def check_scheme(location: Location) -> None:
    """Raise InvalidInput, with a suggestion, for a scheme that no adapter serves."""
    if location.scheme in OBJECT_SCHEMES or location.scheme == "file":
        return
    from fsspec import available_protocols

    known = sorted({*OBJECT_SCHEMES, "file", *available_protocols()} - {RAYCACHE_SCHEME})
    if location.scheme == RAYCACHE_SCHEME:
        raise InvalidInput(f"{location.uri}: a raycache:// path is already cached; give the source it is made from")
    if location.scheme not in known:
        close = get_close_matches(location.scheme, _USUAL, n=1) or get_close_matches(location.scheme, known, n=1)
        guess = close[0] if close else "s3"
        raise InvalidInput(
            f"{location.uri}: no under file system has the scheme {location.scheme!r}; did you mean {guess}://?"
        )
