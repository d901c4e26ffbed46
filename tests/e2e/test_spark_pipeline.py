"""Spark writes through a mount, Hive makes a table of it, Ray Data and PyTorch read it; the bucket gets the same."""

from __future__ import annotations

import re

import pytest
from running import run


@pytest.mark.timeout(400)
def test_what_spark_wrote_is_trained_on_out_of_the_cache_and_ends_up_in_the_bucket() -> None:
    out = run("spark_to_torch.py", "--recordings", "400", timeout_s=350)
    partitions = " ".join(f"100 of tone {tone} (edition {2 if tone == 2 else 1})" for tone in range(4))
    assert f"table: {partitions}\n" in out, "one partition was overwritten, and no other"
    assert f"files: {partitions}\n" in out
    assert "spectra per epoch: 400;" in out
    assert int(re.search(r"told right in the last: (\d+)%", out)[1]) > 80
    recordings, spectra = re.search(r"bytes: (\d+) of recordings, (\d+) of spectra", out).groups()
    assert int(recordings) == 400, "each once, although one partition was made twice"
    assert int(spectra) == 0, "nothing that was written came back from the store"
    files, same = re.search(r"files of the table: (\d+); the bucket has the same: (\w+)", out).groups()
    assert int(files) > 8
    assert same == "True"
