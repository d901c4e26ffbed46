"""``raycache cp``, ``mv``, ``rm``, ``mkdir``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal

from raycache.cli.options import Address, AsJson, connect, print_json
from raycache.client.filesystem import FileSystem
from raycache.client.transfers import Moved, copy_tree, download, upload
from raycache.errors import InvalidInput, IsADirectory, NotADirectory, NotFound

_out = Console(highlight=False)
_STREAM = "-"
_BUFFER_BYTES = 2**20

Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Directories, with all that is below them.")]
Places = Annotated[list[str], typer.Argument(metavar="URI...", help="raycache://name/path or a source URI.")]
WriteType = Annotated[
    str,
    typer.Option(
        metavar="TYPE", help="When the source gets it: cache, through or async. Default: as the dataset says."
    ),
]


def cp(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="FROM... TO", help="URIs (with ://) are of the cache, all else is local; - is a stream."
        ),
    ],
    recursive: Recursive = False,
    write_type: WriteType = "",
    sync: Annotated[bool, typer.Option("--sync", help="Return when it would survive the end of the machine.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Copy files and trees to the cache, from it, or within it; into a directory that is there, or that ends in /."""
    *sources, target = paths
    if not sources:
        raise InvalidInput("cp FROM... TO: give what to copy, and where to")
    if not any(map(_is_uri, paths)):
        raise InvalidInput(f"{' '.join(paths)}: none of these is a URI of the cache, as raycache://name/path is")
    if not _is_uri(target) and not all(map(_is_uri, sources)):
        raise InvalidInput(f"{target}: to copy local files to a local path, use the system's cp")
    files: FileSystem = connect(address).files
    into = _is_directory(files, target)
    if len(sources) > 1 and not into:
        raise NotADirectory(f"{target} is no directory: several files can be copied only into one")
    moved = Moved()
    for source in sources:
        to = _below(target, source) if into else target
        one = _copy(files, source, to, recursive, write_type, sync)
        moved = Moved(moved.files + one.files, moved.size_bytes + one.size_bytes, moved.left_out + one.left_out)
    if as_json:
        print_json({"to": target, "files": moved.files, "size_bytes": moved.size_bytes, "left_out": moved.left_out})
    elif target != _STREAM:
        _out.print(f"{target}: {moved.files:,} files, {decimal(moved.size_bytes)}", markup=False)
        if moved.left_out:
            _out.print(f"left out {moved.left_out:,} links to directories, pipes and the like", style="yellow")


def mv(paths: Annotated[list[str], typer.Argument(metavar="FROM... TO")], address: Address = None) -> None:
    """Give files or directories another name in their dataset, in one step each; or move them into a directory."""
    *sources, target = paths
    if not sources:
        raise InvalidInput("mv FROM... TO: give what to move, and where to")
    if not all(map(_is_uri, paths)):
        raise InvalidInput(f"{' '.join(paths)}: mv moves within a dataset; `raycache cp` copies local files")
    files: FileSystem = connect(address).files
    into = _is_directory(files, target)
    if len(sources) > 1 and not into:
        raise NotADirectory(f"{target} is no directory: several files can be moved only into one")
    for source in sources:
        files.rename(source.rstrip("/"), _below(target, source) if into else target)


def rm(uris: Places, recursive: Recursive = False, address: Address = None, as_json: AsJson = False) -> None:
    """Remove files; with -r directories too, each with all below it in one step. The source loses them as well, unless
    the dataset's write type is cache."""
    files: FileSystem = connect(address).files
    removed = 0
    for uri in uris:
        if recursive:
            removed += files.remove_tree(uri)
            continue
        try:
            files.remove(uri)
        except IsADirectory as error:
            raise IsADirectory(f"{uri} is a directory; remove it with all below it with `raycache rm -r`") from error
        removed += 1
    if as_json:
        print_json({"removed": removed})
    else:
        _out.print(f"removed {removed:,} files and directories")


def mkdir(
    uris: Places,
    parents: Annotated[
        bool, typer.Option("--parents", "-p", help="With those missing above; no error if there.")
    ] = False,
    address: Address = None,
) -> None:
    """Make directories."""
    files: FileSystem = connect(address).files
    for uri in uris:
        files.mkdir(uri, parents=parents, exist_ok=parents)


def _copy(files: FileSystem, source: str, to: str, recursive: bool, write_type: str, sync: bool) -> Moved:
    if _STREAM in (source, to):
        return _stream(files, source, to, write_type, sync)
    is_directory = files.stat(source).is_dir if _is_uri(source) else Path(source).is_dir()
    if is_directory and not recursive:
        raise IsADirectory(f"{source} is a directory; copy it with all below it with -r")
    if not _is_uri(source):
        return upload(files, Path(source), to, write_type, sync)
    if not _is_uri(to):
        return download(files, source, Path(to))
    return copy_tree(files, source, to, write_type)


def _stream(files: FileSystem, source: str, to: str, write_type: str, sync: bool) -> Moved:
    if source == _STREAM:
        with files.open(to, "wb", write_type=write_type, sync=sync) as file:
            shutil.copyfileobj(sys.stdin.buffer, file, _BUFFER_BYTES)
            return Moved(1, file.tell())
    with files.open(source) as file:
        shutil.copyfileobj(file, sys.stdout.buffer, _BUFFER_BYTES)
        sys.stdout.buffer.flush()
        return Moved(1, file.tell())


def _is_uri(path: str) -> bool:
    return "://" in path


def _is_directory(files: FileSystem, target: str) -> bool:
    """Whether what is copied goes into it."""
    if target == _STREAM:
        return False
    if target.endswith("/"):
        return True
    if not _is_uri(target):
        return Path(target).is_dir()
    try:
        return files.stat(target).is_dir
    except (NotFound, NotADirectory):
        return False


def _below(directory: str, source: str) -> str:
    if source == _STREAM:
        raise IsADirectory(f"{directory} is a directory; give the name of a file for what comes from the stream")
    name = source.rstrip("/").rpartition("/")[2]
    if name in ("", ".", ".."):
        raise InvalidInput(f"{source} has no name of its own; give the whole path to copy it to")
    return f"{directory.rstrip('/')}/{name}"
