"""Files that are seen together: written to a directory aside, which takes its place in one step when all are there.

What is aside has a name that begins with ``_raycache-`` and is in the dataset, beside the place it is for; readers of
tables pass over such names. It gets to no source. Who dies leaves it there.

Threading: none of its own; any number of processes may write to what is aside.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from raycache.client.filesystem import FileSystem
from raycache.core import paths
from raycache.errors import Exists, InvalidInput, RaycacheError

ASIDE = "_raycache-"
MODES = ("append", "overwrite", "error")


@contextmanager
def together(files: FileSystem, uri: str, mode: str = "error") -> Iterator[str]:
    """Within this, write to the URI that it gives; all that is below it is then seen below ``uri``.

    ``mode``: ``append`` puts it beside what is there, over files of the same name, a thousand in one step (all in one
    where ``uri`` does not exist); ``overwrite`` replaces the directory in one step; ``error`` raises Exists if there is
    one. An exception leaves things as they were. With the write type ``through`` the source has it afterwards.
    Raises InvalidInput, NotFound, and what renaming raises.
    """
    if mode not in MODES:
        raise InvalidInput(f"mode={mode!r}: choose one of {', '.join(MODES)}")
    dataset, path = files.locate(uri)
    root = f"{paths.RAYCACHE_SCHEME}://{dataset.name}"
    if not path and mode != "append":
        raise InvalidInput(f"{uri} is the root of dataset {dataset.name!r}; write to a directory in it, or append")
    target = paths.join(root, path) if path else root
    if mode == "error" and files.exists(target):
        raise Exists(f"{uri} is there already; mode='append' writes beside it, mode='overwrite' over it")
    parent, name = paths.split(path) if path else ("", "")
    aside = "/".join(filter(None, (root, parent, f"{ASIDE}{name or dataset.name}-{uuid.uuid4().hex[:12]}")))
    files.mkdir(aside, parents=True)
    try:
        yield aside
        _show(files, aside, target, not path, mode)
    except BaseException:  # whatever it was, an interrupt too: nothing of it is to be seen
        with suppress(RaycacheError):  # what went wrong first is what counts
            files.remove_tree(aside)
        raise


def _show(files: FileSystem, aside: str, target: str, is_root: bool, mode: str) -> None:
    if is_root:
        files.move_below(aside, target)
        return
    if mode == "overwrite":
        files.replace_tree(aside, target)
        return
    try:
        files.rename(aside, target, replace=False)
    except Exists:
        if mode == "error":
            raise
        files.move_below(aside, target)
