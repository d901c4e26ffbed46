"""Asking again while the master is away: with growing, jittered pauses, for a time that the user sets.

Whatever is asked again must be the same question: a verb that changes something carries a request id, by which the
master knows what it has done already.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from raycache.errors import ClusterUnavailable, WorkerLost

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
_Result = TypeVar("_Result")


def ask_until_there(
    call: Callable[[], _Result],
    what: str,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    jitter: Callable[[], float] = random.random,
) -> _Result:
    """The result of ``call``, repeated while it raises WorkerLost. ``what`` names the callee in messages.

    Raises ClusterUnavailable when the callee stays away for ``timeout_s`` from when it was missed first, and at once
    whatever else ``call`` raises. ``jitter``: a number from 0 to 1, so that a thousand clients do not come together.
    """
    missed: float | None = None
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except WorkerLost as error:
            now = clock()
            missed = now if missed is None else missed
            left_s = missed + timeout_s - now
            if left_s <= 0:
                raise ClusterUnavailable(
                    f"{what} has been away for {timeout_s:g} s ({error}); it restarts by itself while the Ray cluster "
                    "lives: see `raycache status` and its log in the Ray session's directory, or `raycache start` it"
                ) from error
        sleep(min(left_s, pause_s * (0.5 + 0.5 * jitter())))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
