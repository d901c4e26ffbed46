"""raycache: a distributed cache for training data, made of Ray actors."""
