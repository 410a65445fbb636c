"""Rewrites that trade accuracy for size, and report what they cost."""
