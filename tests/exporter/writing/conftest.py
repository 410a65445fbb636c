"""What tests of what is written share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from intaglio.runtime import user_cache


@pytest.fixture(scope="module")
def kept_kernels(kernel_cache: Path) -> Iterator[None]:
    """Kernels that are compiled are kept for all tests of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_cache, "folder", lambda kind: kernel_cache / kind)
        yield
