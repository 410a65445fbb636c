"""Rewrites that preserve the function, checked by the pipeline after each run."""
