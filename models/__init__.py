"""Systems of the literature, as ordinary training-form modules with tiny trained checkpoints."""

if __name__ != "intaglio.models":
    raise ImportError(f"imported as {__name__!r}: use intaglio.models")
