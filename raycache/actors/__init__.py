"""Ray: the actor shells and every call to Ray there is. Nothing is decided here; brains are elsewhere."""
