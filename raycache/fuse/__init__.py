"""The POSIX view: one ``vfs``, sessions that speak FUSE for it, and the processes around them."""
