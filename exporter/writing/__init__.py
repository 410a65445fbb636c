"""A bundle's files: graphs that share weights, the manifest, engines, and their place on disk."""
