"""What tests of several rooms share."""

import os
from pathlib import Path

import pytest

from intaglio.runtime.trt.flavour import has_device

if not has_device():  # before PyTorch imports Triton, which asks when it is imported
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where kernels that this run compiles are kept, for all of its processes."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if base.name.startswith("popen-") else base  # of one of several workers
    folder = base / "kernel-cache"
    folder.mkdir(exist_ok=True)
    return folder
