"""intaglio: engrave a trained PyTorch model onto an edge engine."""

__version__ = "0.1.0"
