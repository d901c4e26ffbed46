"""Under file systems: where the data really lives. One protocol, one adapter per family.

Only the adapters know which errors are temporary; what they raise is already one of ``raycache.errors``.
"""

from raycache.ufs.base import UnderFileSystem
from raycache.ufs.registry import open_ufs

__all__ = ["UnderFileSystem", "open_ufs"]
