"""Bundles behind a server: the layout of Triton Inference Server, and the model that it runs."""
