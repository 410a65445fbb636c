"""The version of this package: below everything, for what writes it into files."""

__version__ = "0.1.0"
