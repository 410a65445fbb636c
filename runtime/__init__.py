"""Run bundles step by step with carried state; needs numpy and an engine, never torch."""

if __name__ != "intaglio.runtime":
    raise ImportError(f"imported as {__name__!r}: use intaglio.runtime")
