"""What writers need of the master: the tree as it is, and changes to it. ``meta.tree`` fulfils it, ``actors`` over Ray.

Readers do not use it: they see manifests, into which the master publishes what changed (``meta.publishing``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from raycache.core.inode import (
    EXCHANGE,
    NOREPLACE,
    VERBS_AT_ONCE,
    Attr,
    Content,
    Extent,
    Name,
    Place,
    Segment,
    Verb,
)
from raycache.core.values import Failed

__all__ = ["EXCHANGE", "NOREPLACE", "VERBS_AT_ONCE", "Place", "TreeApi"]


class TreeApi(Protocol):
    """Each method is one transaction. All raise NotFound, NotADirectory where a place is not what it must be,
    Refused (ENAMETOOLONG ...) and Unavailable; those that change something take effect once for each request id."""

    def apply(self, verbs: Sequence[Verb]) -> list[Any | Failed]:
        """Several verbs, in order, in one transaction; what one of them is refused undoes that one alone.

        Their answers in order, a Failed where one has failed. Raises InvalidInput for more than VERBS_AT_ONCE.
        """
        ...

    # Questions.

    def lookup(self, parent: Place, name: bytes) -> Attr:
        """The entry of a directory."""
        ...

    def getattr(self, place: Place) -> Attr:
        """An inode, also one that has no name any more and is held open."""
        ...

    def readdir(self, place: Place, after: bytes, count: int) -> list[Name]:
        """Entries of a directory in the order of their names, from the first that is greater than ``after`` on."""
        ...

    def readlink(self, place: Place) -> bytes:
        """Target of a symbolic link. Raises InvalidInput for anything else."""
        ...

    def content(self, place: Place) -> tuple[Attr, Content]:
        """What a file is made of now. A listed file that was never changed is one extent of the source."""
        ...

    def contents(self, wanted: Sequence[tuple[int, int]]) -> list[Content | Failed]:
        """The same for pairs of number and version, for workers that make blocks; Changed for what is gone."""
        ...

    # Names.

    def mknod(self, parent: Place, name: bytes, mode: int, uid: int, gid: int, rdev: int) -> Attr:
        """Make an empty file, a pipe, a socket or a device node. Raises Exists.

        In a directory whose set-group-id bit is set it gets the directory's group, as do links and directories, which
        get the bit too.
        """
        ...

    def mkdir(self, parent: Place, name: bytes, mode: int, uid: int, gid: int) -> Attr:
        """Make a directory. Raises Exists."""
        ...

    def symlink(self, parent: Place, name: bytes, target: bytes, uid: int, gid: int) -> Attr:
        """Make a symbolic link. Raises Exists."""
        ...

    def link(self, place: Place, parent: Place, name: bytes) -> Attr:
        """Give a file another name. Raises Exists, Refused (EPERM: a directory; EMLINK)."""
        ...

    def unlink(self, parent: Place, name: bytes, holder: str = "") -> Attr:
        """Take a name from a file; what it is now, with the number of names left.

        ``holder``: a mount that has it open: then it stays until ``release``. Raises
        IsADirectory.
        """
        ...

    def rmdir(self, parent: Place, name: bytes) -> Attr:
        """Remove an empty directory. Raises NotEmpty."""
        ...

    def remove_tree(self, place: Place) -> int:
        """Remove a directory with all below it, or a file, at once; how many entries went."""
        ...

    def rename(
        self, parent: Place, name: bytes, to_parent: Place, to_name: bytes, flags: int = 0, holder: str = ""
    ) -> Attr:
        """Move a file or a whole tree, over what is there; what moved. As rename(2) and renameat2(2).

        ``holder``: a mount that has what is replaced open. Raises Exists, NotEmpty, IsADirectory, InvalidInput (into
        itself), Refused (EXDEV: another dataset, or a tree of more than TREE_MAX listed files).
        """
        ...

    def replace_tree(self, parent: Place, name: bytes, to_parent: Place, to_name: bytes) -> Attr:
        """The same in the place of whatever is there, which is removed with all below it, in one step. Raises as
        ``rename``; then nothing is removed."""
        ...

    # Attributes.

    def setattr(self, place: Place, changes: dict[str, int]) -> Attr:
        """Set some of ``mode`` (permissions only), ``uid``, ``gid``, ``atime_ns``, ``mtime_ns``, ``ctime_ns`` and
        ``size_bytes`` (cut, or a hole at the end). ctime is now unless it is given."""
        ...

    def getxattr(self, place: Place, name: bytes) -> bytes:
        """Raises Refused (ENODATA)."""
        ...

    def listxattr(self, place: Place) -> list[bytes]:
        """Names of all."""
        ...

    def setxattr(self, place: Place, name: bytes, value: bytes, flags: int) -> None:
        """``flags``: as setxattr(2). Raises Exists, Refused (ENODATA)."""
        ...

    def removexattr(self, place: Place, name: bytes) -> None:
        """Raises Refused (ENODATA)."""
        ...

    # Contents.

    def commit(
        self, place: Place, content: Content, segments: Sequence[Segment], mtime_ns: int, write_type: str = ""
    ) -> Attr:
        """Give a file other contents, whole. ``segments``: those that are new. The last one to commit wins.

        ``write_type``: for this file; empty: as its dataset says. Raises Changed when an extent names a segment that
        is gone, InvalidInput for extents that overlap, are out of order or too many.
        """
        ...

    def put(
        self,
        parent: Place,
        name: bytes,
        mode: int,
        content: Content,
        segments: Sequence[Segment],
        mtime_ns: int,
        write_type: str = "",
        replace: bool = True,
    ) -> Attr:
        """Make a file with contents, or replace what is there (its number stays), at once.

        Directories that are missing on the way of a path are made. Raises Exists where ``replace`` is False,
        IsADirectory.
        """
        ...

    def release(self, holder: str, inos: Sequence[int] | None = None) -> None:
        """A mount has closed inodes that had no name any more; None: all that it ever held (it is gone)."""
        ...

    # Publishing and persisting.

    def publish(self, dir_ids: Sequence[int]) -> list[int]:
        """Make manifests show what was changed in directories, now; their versions then, 0 for what was never listed:
        its first manifest shows all. In a call with other verbs it comes after them. Without this it is done within a
        second, later for large directories."""
        ...

    def sync(self) -> None:
        """Have all that was changed outlive a power cut of the master's machine. In a call with other verbs it comes
        after them. Without this it is so within seconds. Raises Unavailable."""
        ...

    def extend_segment(self, segment: Segment) -> None:
        """A further copy of a segment, or that a worker has lost it: ``size_bytes`` is -1 then."""
        ...

    def known_segments(self, worker_id: str, segments: Sequence[str]) -> list[bool]:
        """Whether files need segments on the disk of a worker, or any copies of them."""
        ...

    def segment_places(self, segments: Sequence[str]) -> list[list[str]]:
        """Of each segment the workers that have it; none for one that no file needs."""
        ...

    def segments_of(self, worker_id: str, after: str, count: int) -> list[str]:
        """Segments that a worker has as far as is known, in order, from the first that is greater than ``after`` on."""
        ...

    def let_go_segments(self, worker_id: str, segments: Sequence[str]) -> list[int]:
        """Have files refer to their source in place of segments of a worker, which may be deleted then.

        Of each segment how many bytes of it commits have named; -1 for one that stays, as the source has not got
        something of it yet, or that is not known.
        """
        ...

    def drop_segments(self, worker_id: str, segments: Sequence[str]) -> list[bool]:
        """Of each segment whether no file needs it; it may be deleted then: a commit that names it, from a process that
        has died meanwhile, is refused from now on."""
        ...

    def moved_segments(self, dataset: str, extents: Sequence[Extent]) -> list[list[Extent]]:
        """Where bytes are now whose segments were let go; the same extents where that is not known."""
        ...

    def discard_conflicts(self, place: Place) -> list[int]:
        """Decide conflicts at and below a path for what the source has: what was written under these names is lost.

        For each of them the id of its directory, which is to be refreshed; 0 where that is gone. Raises InvalidInput
        for a number.
        """
        ...

    def set_write_type(self, dataset: str, write_type: str) -> None:
        """``cache``, ``through`` or ``async``. Raises InvalidInput, NotFound."""
        ...
