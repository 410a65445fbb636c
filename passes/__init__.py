"""Graph rewrites, one file each: exact, calibrated and lowering ones."""

if __name__ != "intaglio.passes":
    raise ImportError(f"imported as {__name__!r}: use intaglio.passes")
