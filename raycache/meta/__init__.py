"""The master's brain: the catalog on disk, and the listing of sources into manifests. Knows no Ray."""
