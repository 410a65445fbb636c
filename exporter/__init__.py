"""From a trained checkpoint to a bundle: load, trace, run the passes, write, verify."""

if __name__ != "intaglio.exporter":
    raise ImportError(f"imported as {__name__!r}: use intaglio.exporter")
