"""The client library, in the caller's process: manifests, placement, views, reads. Knows no Ray: see ``protocols``."""
