"""Ways into the cache for programs that know Ray Data and PyTorch: bytes without a copy, whole batches per call."""
