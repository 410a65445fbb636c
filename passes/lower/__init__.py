"""Rewrites that prepare a step graph for one target."""
