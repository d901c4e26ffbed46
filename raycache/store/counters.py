"""What a worker counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """What a worker did since it started. Reads are ranges asked for; a miss waited for the source."""

    reads: int = 0
    hits: int = 0
    misses: int = 0
    hedged: int = 0
    """Of the reads, those asked for here because the block's owner was slow."""
    read_through: int = 0
    """Misses on a block that did not fit into the quota."""
    ufs_requests: int = 0
    ufs_bytes: int = 0
    ufs_errors: int = 0
    """Parts that did not come, from wherever."""
    written_bytes: int = 0
    """Bytes of files that were written here: from segments, wherever they lie."""
    peer_blocks: int = 0
    """Blocks fetched whole from another worker that had them."""
    peer_bytes: int = 0
    """Bytes from other workers: those blocks, and what was read through them."""
    peer_failures: int = 0
    """Blocks that another worker had offered and could not give, and reads through one that was gone."""
    given_blocks: int = 0
    """Blocks handed over to other workers."""
    changed: int = 0
    """Parts whose file was no longer the one listed."""
    not_kept: int = 0
    """Blocks fetched whole and not kept: the store had no room, or the source failed."""
