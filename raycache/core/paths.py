"""Source URIs and paths inside a dataset.

A path inside a dataset is a ``str`` with ``/`` between names, no leading or trailing slash, and ``""`` for the root.
Bytes that are not UTF-8 travel as surrogate escapes, as in ``os.fsdecode``.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from raycache.errors import InvalidInput

RAYCACHE_SCHEME = "raycache"
NAME_MAX = 255
"""Longest name in bytes that Linux lets a directory entry have."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://(.*)", re.DOTALL)
_DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,99}")


class Location(NamedTuple):
    """A URI in parts. ``file`` URIs have an empty authority and an absolute path."""

    scheme: str
    authority: str
    path: str

    @property
    def uri(self) -> str:
        """The URI again, without a trailing slash."""
        if self.scheme == "file":
            return f"file:///{self.path}"
        joined = f"{self.authority}/{self.path}" if self.path else self.authority
        return f"{self.scheme}://{joined}"


def parse_uri(uri: str) -> Location:
    """Split ``s3://bucket/a/b``; a path without a scheme is a local one and is made absolute.

    Raises InvalidInput for an empty URI, a missing bucket, or a path that climbs out with ``..``.
    """
    if not uri:
        raise InvalidInput("empty source; give a URI such as s3://bucket/train")
    match = _SCHEME.fullmatch(uri)
    if match is None:
        head = uri.partition("/")[0]
        if ":" in head:
            raise InvalidInput(f"{uri!r} is not a URI; write it with two slashes, as in s3://bucket/train")
        return Location("file", "", normalise(os.path.abspath(os.path.expanduser(uri))))
    scheme, rest = match.group(1).lower(), match.group(2)
    authority, _, path = rest.partition("/")
    if ":" in authority.rpartition("@")[0]:
        raise InvalidInput(
            f"{scheme}://...@{authority.rpartition('@')[2]}: a source is shown and logged and must not hold a "
            "password; give it as a storage option"
        )
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise InvalidInput(f"{uri!r} names a host; a local path has three slashes, as in file:///{rest}")
        return Location("file", "", normalise(path))
    if not authority and scheme != "memory":
        raise InvalidInput(f"{uri!r} names no bucket or host; write {scheme}://bucket/path")
    return Location(scheme, authority, normalise(path))


def normalise(path: str) -> str:
    """Drop empty and ``.`` segments. Raises InvalidInput on ``..`` and on NUL."""
    if "\0" in path:
        raise InvalidInput(f"{path!r} holds a NUL byte")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidInput(f"{path!r} leaves its dataset with '..'; give the path itself")
    return "/".join(parts)


def join(*parts: str) -> str:
    """Join normalised paths; empty ones vanish."""
    return "/".join(part for part in parts if part)


def split(path: str) -> tuple[str, str]:
    """Parent and last name of a normalised path; the root has parent and name ``""``."""
    parent, _, name = path.rpartition("/")
    return parent, name


def check_dataset_name(name: str) -> str:
    """Return ``name`` or raise InvalidInput: letters, digits, dot, dash and underscore, at most 100."""
    if not _DATASET_NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} cannot name a dataset: use letters, digits, '.', '_' and '-', at most 100")
    return name


def suggest_dataset_name(location: Location) -> str:
    """A readable dataset name for a source that the user did not name."""
    text = re.sub(r"[^A-Za-z0-9._\-]+", "-", f"{location.authority}-{location.path}").strip("-._")
    return text[-80:].lstrip("-._") or re.sub(r"[+]", "-", location.scheme)


def is_shown(name: bytes) -> bool:
    """Whether Linux could show a directory entry of this name at all."""
    return 0 < len(name) <= NAME_MAX and name not in (b".", b"..") and b"/" not in name and b"\0" not in name
