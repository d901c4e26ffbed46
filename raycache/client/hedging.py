"""When to ask somebody else because a worker is slow. Pure: what took how long is told to it.

After Dean and Barroso, "The Tail at Scale", CACM 2013: a call that takes longer than almost all others is made once
more, elsewhere, and the first answer counts; the number of such calls is bounded by a share of all. What is usual is a
quantile that follows the calls, one number per size of call (Ma, Muthukrishnan and Sandler, "Frugal Streaming for
Estimating Quantiles", 2013; here on a logarithmic scale). A worker that keeps losing is gone round for a while.
"""

from __future__ import annotations

import math

QUANTILE = 0.95
USUAL_TIMES = 3.0
"""A call is slow when it takes so many times what 95 of 100 take at most."""
SHORTEST_S = 0.05
"""No call is slow before."""
LEARNED_MIN = 16
"""Calls of a size that must have ended before one of that size can be slow."""
SHARE = 0.05
"""Calls made once more, of all calls, in the long run; BURST of them at once."""
BURST = 10.0
LOSSES = 3
"""Calls in a row that others answered first, after which a worker is gone round for ROUND_S."""
ROUND_S = 5.0
_STEP = 0.25
_CLASSES = (64 * 2**10, 2**20, 8 * 2**20)


class Usual:
    """How long calls of one size take: follows the QUANTILE of what it is told."""

    def __init__(self) -> None:
        self.calls = 0
        self._log_s = 0.0

    def learn(self, took_s: float) -> None:
        """A call took so long, or at least so long."""
        log_s = math.log(max(took_s, 1e-6))
        if not self.calls:
            self._log_s = log_s
        self.calls += 1
        self._log_s += _STEP * (QUANTILE if log_s > self._log_s else QUANTILE - 1)

    @property
    def slow_s(self) -> float | None:
        """From when on a call is slow; None while too little is known."""
        return max(SHORTEST_S, USUAL_TIMES * math.exp(self._log_s)) if self.calls >= LEARNED_MIN else None


class Hedging:
    """What one client knows of its calls. Not thread-safe: its owner locks."""

    def __init__(self) -> None:
        self.calls = 0
        self.hedges = 0
        """Calls made once more elsewhere."""
        self.won = 0
        """Of them, those that answered first."""
        self._usual = [Usual() for _ in range(len(_CLASSES) + 1)]
        self._credit = BURST
        self._losses: dict[str, int] = {}
        self._round_until: dict[str, float] = {}

    def begun(self) -> None:
        """A call was made."""
        self.calls += 1
        self._credit = min(BURST, self._credit + SHARE)

    def slow_s(self, size_bytes: int) -> float | None:
        """How long to wait for a call of a size before it is slow; None: for ever."""
        return self._usual_of(size_bytes).slow_s

    def allow(self) -> bool:
        """Whether one more call may be made; counts it."""
        if self._credit < 1:
            return False
        self._credit -= 1
        self.hedges += 1
        return True

    def answered(self, worker_id: str, size_bytes: int, took_s: float) -> None:
        """A worker answered before anybody else did."""
        self._usual_of(size_bytes).learn(took_s)
        self._losses.pop(worker_id, None)

    def beaten(self, worker_id: str, size_bytes: int, waited_s: float, now: float) -> None:
        """A worker had not answered yet when somebody else had."""
        self._usual_of(size_bytes).learn(waited_s)
        self.won += 1
        self._losses[worker_id] = self._losses.get(worker_id, 0) + 1
        if self._losses[worker_id] >= LOSSES:
            self._round_until[worker_id] = now + ROUND_S

    def is_gone_round(self, worker_id: str, now: float) -> bool:
        """Whether to ask others in place of a worker."""
        return self._round_until.get(worker_id, 0.0) > now

    def keep(self, worker_ids: set[str]) -> None:
        """Forget workers that are no more."""
        for table in (self._losses, self._round_until):
            for gone in table.keys() - worker_ids:
                del table[gone]

    def _usual_of(self, size_bytes: int) -> Usual:
        return self._usual[sum(size_bytes > limit for limit in _CLASSES)]
