"""What tests and demonstrations of a cache need: a real S3 server on this machine, and a proxy that counts and breaks.

Shipped with the package, so that users can test their own pipelines against the same things.
"""

from raycache.testing.objectstore import ObjectStoreServer
from raycache.testing.proxy import CountingProxy, Gate

__all__ = ["CountingProxy", "Gate", "ObjectStoreServer"]
