"""PyTorch's table of ONNX functions, made once for a process: a third of a conversion's time."""

import contextlib
import copy
from collections.abc import Iterator

import pytest
from torch.onnx._internal.exporter._constants import TORCHLIB_OPSET
from torch.onnx._internal.exporter._registration import ONNXRegistry


@contextlib.contextmanager
def made_once() -> Iterator[None]:
    """Make no table twice; a conversion writes its own entries into it, so each gets a copy."""
    made = ONNXRegistry.from_torchlib
    tables: dict[int, ONNXRegistry] = {}

    def from_torchlib(opset_version: int = TORCHLIB_OPSET) -> ONNXRegistry:
        if opset_version not in tables:
            tables[opset_version] = made(opset_version)
        table = copy.copy(tables[opset_version])
        table.functions = {name: [*known] for name, known in table.functions.items()}
        return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
        yield
