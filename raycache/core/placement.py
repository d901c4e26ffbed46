"""Placement: which worker owns a block. Weighted rendezvous hashing, computed by every client alike.

Each worker scores each block; the highest score owns it and the second highest is asked when the owner is away.
A worker that joins or leaves moves only its own share (Thaler and Ravishankar, "Using name-based mappings to increase
hit rates", 1998). The logarithmic weighting keeps that property for unequal workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import xxhash

from raycache.core.values import Worker


def rank(block_id: bytes, workers: Sequence[Worker]) -> list[Worker]:
    """Workers in the order in which to ask them for a block; the first is its owner. Those that leave come last."""
    return sorted(workers, key=lambda worker: (worker.draining, -_score(block_id, worker), worker.worker_id))


def owners(block_id: bytes, workers: Sequence[Worker], replicas: int) -> list[Worker]:
    """The workers that a block lies on: the first ``replicas`` of its ranking, without those that leave."""
    return [worker for worker in rank(block_id, workers)[:replicas] if not worker.draining]


def preference(block_id: bytes, workers: Sequence[Worker], replicas: int) -> list[Worker]:
    """Workers in the order in which to read a block from them: its owners, one on the reader's node first; the rest."""
    ranked = rank(block_id, workers)
    if replicas == 1:
        return ranked
    having = [worker for worker in ranked[:replicas] if not worker.draining]
    return sorted(having, key=lambda worker: not worker.local) + [worker for worker in ranked if worker not in having]


def _score(block_id: bytes, worker: Worker) -> float:
    digest = xxhash.xxh3_64_intdigest(block_id + worker.worker_id.encode())
    # Strictly inside (0, 1): 52 bits and a half are exact in a float, so that the logarithm is finite and not zero.
    return worker.capacity_bytes / -math.log(((digest >> 12) + 0.5) / 2**52)
