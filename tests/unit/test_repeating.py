"""A thread that goes on, whatever becomes of one step."""

from __future__ import annotations

import logging
import threading

import pytest

from raycache.core.repeating import keep_doing
from raycache.errors import Unavailable


def test_a_step_that_fails_is_logged_and_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[Exception] = [Unavailable("the master is away"), ValueError("a defect")]
    done = threading.Event()

    def step() -> None:
        if failures:
            raise failures.pop(0)
        done.set()

    with caplog.at_level(logging.WARNING, "raycache"):
        keep_doing(step, 0.0, "step", "cannot look")
        assert done.wait(10)
    known, unknown = caplog.records[:2]
    assert (known.getMessage(), known.exc_info) == ("cannot look: the master is away", None)
    assert unknown.getMessage() == "cannot look"
    assert unknown.exc_info is not None
