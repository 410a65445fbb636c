"""How operations of PyTorch are written in ONNX: ours, and PyTorch's own table kept."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from intaglio.ops import OPS

TRANSLATIONS = {op.torch_op: op.translation for op in OPS if op.translation is not None}
_kept: dict[tuple[Any, ...], Any] = {}


@contextlib.contextmanager
def table_kept() -> Iterator[None]:
    """Let PyTorch's exporter keep its table of translations from one model to the next.

    It makes the table anew for each model and parses the source text of some 500 functions to do
    so, which takes longer than all else of a small export.  Each model is given a copy, so that
    what is added for one is not there for another.  A version of PyTorch that has the table
    elsewhere goes on making it.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        own = ONNXRegistry.__dict__["from_torchlib"]
    except (ImportError, KeyError):
        yield
        return

    def copied(registry: Any, opset_version: int) -> Any:
        key = (registry, opset_version)
        if key not in _kept:
            _kept[key] = own.__get__(None, registry)(opset_version=opset_version)
        table = copy.copy(_kept[key])
        table.functions = {target: list(those) for target, those in table.functions.items()}
        return table

    ONNXRegistry.from_torchlib = classmethod(copied)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = own  # type: ignore[method-assign]
