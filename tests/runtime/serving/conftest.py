"""A bundle whose streams are served."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def served_bundle(
    build_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """States of every layout that rows of unequal length may have."""
    layouts = ("recurrent", "conv", "window", "static")
    return build_bundle(tmp_path_factory.mktemp("served") / "lm", layouts)
