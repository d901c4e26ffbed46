"""The PyTorch, Ray Data and job examples run, small, and leave no mount behind."""

from __future__ import annotations

import re

import pytest
from running import run


@pytest.mark.timeout(200)
def test_torch_loader_trains_stops_and_goes_on_where_it_was() -> None:
    out = run("torch_loader.py", "--recordings", "400", "--epochs", "2")
    assert "samples per part: [400, 96, 304]" in out
    assert int(re.search(r"told right: (\d+)%", out)[1]) > 90


@pytest.mark.timeout(200)
def test_ray_data_preprocesses_and_trains() -> None:
    out = run("ray_data_train.py", "--recordings", "400")
    assert "requests: 400 for 400 recordings" in out
    assert "spectra per epoch: 400;" in out
    assert int(re.search(r"told right in the last: (\d+)%", out)[1]) > 80


@pytest.mark.timeout(200)
def test_a_job_finds_its_mount() -> None:
    out = run("submit_job.py", "--recordings", "40")
    assert "SUCCEEDED: the job sees {'tone0': 10, 'tone1': 10, 'tone2': 10, 'tone3': 10} with 81920 bytes at" in out
    assert "left behind: []" in out


@pytest.mark.timeout(300)
def test_ray_train_goes_on_at_its_last_checkpoint() -> None:
    out = run("ray_train.py", "--recordings", "320", timeout_s=250)
    assert "samples per epoch: [320, 320, 320]" in out
    assert int(re.search(r"epoch 1 went on at (\d+)", out)[1]) >= 128, out
