"""What tests of several rooms share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where kernels that this run compiles are kept, for all of its processes."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if base.name.startswith("popen-") else base  # of one of several workers
    folder = base / "kernel-cache"
    folder.mkdir(exist_ok=True)
    return folder
