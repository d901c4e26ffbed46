"""The tree that writers see: verbs and questions of ``client.treeapi``, several in one transaction.

Responsible for: transactions, each verb taking effect once, and having listings at hand. What verbs do is in
``naming``, ``renaming``, ``attributes`` and ``committing``, over ``inodes``.

How a verb gets a listing: a transaction must not wait for a source, so that a verb that needs one raises Missing. The
others of the call are tried all the same, to learn what they need; then all is undone, the listings are loaded, and all
is done again. A listing that changes meanwhile is loaded again.

Threading: safe; the catalog does one transaction at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from sqlite3 import Connection
from typing import Any

from raycache.core.inode import VERBS_AT_ONCE, Attr, Verb
from raycache.core.values import Failed
from raycache.core.verbs import TreeVerbs
from raycache.errors import InvalidInput, RaycacheError, Unavailable
from raycache.meta import attributes, committing, conflicts, letgo, naming, renaming
from raycache.meta.catalog import Catalog, keep_replies
from raycache.meta.inodes import Inodes
from raycache.meta.lowers import Lower, Lowers, Missing

QUESTIONS: dict[str, Callable[..., Any]] = {
    "lookup": naming.lookup,
    "getattr": attributes.getattr_,
    "readdir": naming.readdir,
    "readlink": naming.readlink,
    "content": committing.content,
    "contents": committing.contents,
    "getxattr": attributes.getxattr,
    "listxattr": attributes.listxattr,
    "known_segments": committing.known_segments,
    "segment_places": committing.segment_places,
    "segments_of": committing.segments_of,
    "moved_segments": letgo.moved_segments,
}
CHANGES: dict[str, Callable[..., Any]] = {
    "mknod": naming.mknod,
    "mkdir": naming.mkdir,
    "symlink": naming.symlink,
    "link": naming.link,
    "unlink": naming.unlink,
    "rmdir": naming.rmdir,
    "remove_tree": renaming.remove_tree,
    "rename": renaming.rename,
    "replace_tree": renaming.replace_tree,
    "setattr": attributes.setattr_,
    "setxattr": attributes.setxattr,
    "removexattr": attributes.removexattr,
    "commit": committing.commit,
    "put": committing.put,
    "release": naming.release,
    "extend_segment": committing.extend_segment,
    "let_go_segments": letgo.let_go_segments,
    "drop_segments": letgo.drop_segments,
    "set_write_type": committing.set_write_type,
    "discard_conflicts": conflicts.discard_conflicts,
}
PUBLISH, SYNC = "publish", "sync"
"""Done when what the others of their call did is stored."""
DURABLE = {"let_go_segments", "drop_segments", "discard_conflicts", "set_write_type"}
"""Changes after which something is deleted that could not be had back, or that others were promised."""
MAKERS = ("mknod", "symlink", "put")
"""Verbs that make an inode, or may."""
LOADS_MAX = 4096
"""Times that one call may find that it needs more listings: the levels of the deepest path, and those that change."""


class _Again(Exception):
    """Undoes a transaction whose verbs need more listings."""


class Tree(TreeVerbs):
    """See the module."""

    def __init__(
        self,
        catalog: Catalog,
        lowers: Lowers,
        now_ns: Callable[[], int],
        publish: Callable[[Sequence[int]], list[int]] = lambda _: [],
    ) -> None:
        self._catalog = catalog
        self._publish = publish
        self._lowers = lowers
        self._now_ns = now_ns

    def apply(self, verbs: Sequence[Verb]) -> list[Any | Failed]:
        """See TreeApi."""
        if len(verbs) > VERBS_AT_ONCE:
            raise InvalidInput(f"{len(verbs)} verbs in one call; send at most {VERBS_AT_ONCE}")
        held: dict[int, Lower | Failed] = {}
        for _ in range(LOADS_MAX):
            missing: dict[int, bool] = {}
            try:
                with self._catalog.transaction(durable=not DURABLE.isdisjoint(verb.name for verb in verbs)) as db:
                    inodes = Inodes(db, self._lowers, held, self._now_ns())
                    inodes.take_inos(sum(verb.name in MAKERS for verb in verbs))
                    replies: dict[str, Any] = {}
                    answers = [_answer(inodes, verb, replies, missing) for verb in verbs]
                    if missing:
                        raise _Again
                    inodes.give_inos_back()
                    if replies:
                        keep_replies(db, replies)
            except _Again:
                held = self._lowers.load(missing, held)
            else:
                return [self._after(verb, answer) for verb, answer in zip(verbs, answers, strict=True)]
        raise Unavailable("the directories that this is about keep changing; try again")

    def _after(self, verb: Verb, answer: Any | Failed) -> Any | Failed:
        """The answer of a verb that is done when what the others of its call did is stored."""
        if verb.name not in (PUBLISH, SYNC):
            return answer
        try:
            if verb.name == PUBLISH:
                return self._publish(*verb.args)
            self._catalog.sync()
            return None
        except RaycacheError as error:
            return Failed(error)


def _answer(inodes: Inodes, verb: Verb, replies: dict[str, Any], missing: dict[int, bool]) -> Any | Failed:
    """What a verb answers, or what it was refused for. Of a change it joins ``replies``; what a verb needs and is not
    there joins ``missing``, and the answer means nothing then."""
    try:
        if verb.name in (PUBLISH, SYNC):
            return None
        if verb.name in QUESTIONS:
            return QUESTIONS[verb.name](inodes, *verb.args)
        if verb.name not in CHANGES:
            raise InvalidInput(f"{verb.name!r} is no verb of the tree")
        told = None if verb.request_id is None else _told(inodes.db, verb.request_id, replies)
        if told is not None:
            return told[0]
        answer = _change(inodes, verb)
        if verb.request_id is not None:
            replies[verb.request_id] = answer
        return answer
    except Missing as more:
        for dir_id in more.dir_ids:
            missing[dir_id] = missing.get(dir_id, False) or more.in_order
        return None
    except RaycacheError as error:
        return Failed(error)


def _change(inodes: Inodes, verb: Verb) -> Any:
    """Do a verb, or nothing of it."""
    inodes.db.execute("SAVEPOINT verb")
    try:
        answer = CHANGES[verb.name](inodes, *verb.args)
    except (Missing, RaycacheError):
        inodes.db.execute("ROLLBACK TO verb")
        inodes.db.execute("RELEASE verb")
        inodes.forget()
        raise
    inodes.db.execute("RELEASE verb")
    return answer


def _told(db: Connection, request_id: str, replies: dict[str, Any]) -> tuple[Any] | None:
    """What a verb was answered before."""
    if request_id in replies:
        return (replies[request_id],)
    row = db.execute("SELECT reply FROM requests WHERE request_id = ?", (request_id,)).fetchone()
    if row is None:
        return None
    reply = json.loads(row[0])
    return (Attr._make(reply) if isinstance(reply, list) else reply,)
