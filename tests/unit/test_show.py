"""What the command line shows while it waits."""

from __future__ import annotations

import signal
from contextlib import suppress

import pytest

from raycache.cli import show
from raycache.core.values import ListingJob


def test_an_interrupt_that_was_swallowed_comes_again() -> None:
    job = ListingJob(1, "data", "", "running", 0, 0, 0, 0, 0, "", "")
    before = signal.getsignal(signal.SIGINT)
    with suppress(KeyboardInterrupt), show.progress("listing") as update:
        update(job)
        with suppress(KeyboardInterrupt):  # as a callback of Ray does with it
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            update(job)
    assert signal.getsignal(signal.SIGINT) is before
