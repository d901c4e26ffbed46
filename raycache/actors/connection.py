"""A connection for what came from another process: a file system, a dataset.

It names its cache, so that the environment of the process that it came to need not.
"""

from __future__ import annotations

import ray

from raycache.actors.cluster import Cluster, connected_settings, current, disconnect
from raycache.config import Settings
from raycache.errors import InvalidInput


def current_for(settings: Settings) -> Cluster:
    """The connection of this process, made with ``settings`` if it has none yet. Never starts a cache.

    A process that runs Ray's tasks one after the other has the connection that the present one needs. Elsewhere it is
    the user's: raises InvalidInput when that is to another cache than they name. Raises what Cluster.open raises.
    """
    known = connected_settings()
    if known is not None and known.namespace != settings.namespace and _is_in_task():
        disconnect()
        known = None
    if known is None:
        return current(settings, start=False)
    if known.namespace != settings.namespace:
        raise InvalidInput(
            f"this process is connected to the cache {known.namespace!r}, not to {settings.namespace!r}; "
            "raycache.disconnect() first"
        )
    return current()


def _is_in_task() -> bool:
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.get_task_id() is not None and context.get_actor_id() is None
