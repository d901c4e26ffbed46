"""What changes go to, and what follows each: this process sees it, and a write type ``through`` waits for the source.

Threading: safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from raycache.client.namespace import Namespace
from raycache.client.segments import Segments
from raycache.client.treeapi import TreeApi
from raycache.core import paths
from raycache.core.values import Dataset


class Target(NamedTuple):
    """A name that is given, taken away or written to."""

    about: Dataset
    parent: str
    """Directory inside the dataset."""
    name: bytes
    """Empty for the root of the dataset."""
    uri: str
    """As the user wrote it, for messages."""

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.about.name

    @property
    def path(self) -> str:
        """Inside the dataset."""
        return paths.join(self.parent, self.name.decode("utf-8", "surrogateescape"))

    @property
    def place(self) -> tuple[str, str]:
        """See core.inode.Place."""
        return self.dataset, self.path

    @property
    def folder(self) -> tuple[str, str]:
        """The place of the directory above it."""
        return self.dataset, self.parent


class Changing:
    """See the module."""

    def __init__(
        self,
        namespace: Namespace,
        tree: TreeApi,
        segments: Segments,
        wait: Callable[[Sequence[tuple[str, str]]], object] = lambda places: None,
    ) -> None:
        """``wait``: returns when the source has what was changed at these paths."""
        self.namespace = namespace
        self.tree = tree
        self.segments = segments
        self._wait = wait

    def target(self, uri: str) -> Target:
        """Where a URI leads. Raises InvalidInput, NotFound for its dataset."""
        dataset, path = self.namespace.locate(uri)
        parent, name = paths.split(path) if path else ("", "")
        return Target(dataset, parent, name.encode("utf-8", "surrogateescape"), uri)

    def noted(self, targets: Iterable[Target]) -> None:
        """Names may have changed: who looks at them next here sees what is there."""
        for dataset, parent in {each.folder for each in targets}:
            self.namespace.touched(dataset, parent)

    def settled(self, targets: Iterable[Target], write_type: str = "") -> None:
        """Return when the changes of these names are where their write type says. Raises what ``wait`` raises."""
        through = [each.place for each in targets if (write_type or each.about.write_type) == "through"]
        if through:
            self._wait(through)
