"""Transforms for the PyTorch datasets, each one call of a library: ``FileDataset(uri, decode_image)``.

``pip install 'raycache[media]'`` brings Pillow and soundfile. What a model wants beyond this - sizes, crops,
resampling, labels - is a function of yours around them.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

__all__ = ["decode_audio", "decode_image"]


def decode_image(buffer: memoryview, path: str) -> Any:
    """A picture as a tensor of ``uint8``: channels (RGB), rows, columns. Raises what Pillow raises."""
    from PIL import Image

    with Image.open(io.BytesIO(buffer)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def decode_audio(buffer: memoryview, path: str) -> tuple[Any, int]:
    """A recording as a tensor of ``float32``, channels and frames; and frames per second. Raises soundfile's errors."""
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(buffer), dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T), int(rate)
