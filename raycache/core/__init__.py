"""Values and rules without I/O: paths, manifests, layout, placement. Everything here is tested without Ray."""
