"""Where the C++ headers lie that step a bundle without Python."""

from pathlib import Path


def get_include() -> str:
    """The folder of ``intaglio.hpp``, for a compiler's ``-I``."""
    return str(Path(__file__).resolve().parent / "c++")
