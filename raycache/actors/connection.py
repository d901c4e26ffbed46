"""A connection for what came from another process: a file system, a dataset.

It names its cache, so that the environment of the process that it came to need not.
"""

from __future__ import annotations

from raycache.actors.cluster import Cluster, connected_settings, current
from raycache.config import Settings
from raycache.errors import InvalidInput


def current_for(settings: Settings) -> Cluster:
    """The connection of this process, made with ``settings`` if it has none yet. Never starts a cache.

    Raises InvalidInput when it is connected to another cache than they name, and what Cluster.open raises.
    """
    known = connected_settings()
    if known is None:
        return current(settings, start=False)
    if known.namespace != settings.namespace:
        raise InvalidInput(
            f"this process is connected to the cache {known.namespace!r}, not to {settings.namespace!r}; "
            "raycache.disconnect() first"
        )
    return current()
