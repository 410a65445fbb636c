"""How operations of PyTorch are written in ONNX: ours, and PyTorch's own table kept."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch.export import ExportedProgram

from intaglio.ops import OPS

TRANSLATIONS = {op.torch_op: op.translation for op in OPS if op.translation is not None}
_kept: dict[tuple[Any, ...], Any] = {}


@contextlib.contextmanager
def swift_translations() -> Iterator[None]:
    """Let PyTorch's exporter keep its table of translations, and not trace what is plain already.

    It makes the table anew for each model and parses the source text of some 500 functions to do
    so, which takes longer than all else of a small export.  Each model is given a copy, so that
    what is added for one is not there for another.  And it traces each program twice more to write
    composite operations as plain ones, see `plain_ops`.  A version of PyTorch that has these
    elsewhere goes on doing both.
    """
    try:
        from torch.onnx._internal.exporter import _fx_passes
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        from .plain_ops import made_plain

        own, again = ONNXRegistry.__dict__["from_torchlib"], _fx_passes.decompose_with_registry
    except (AttributeError, ImportError, KeyError):
        yield
        return

    def plain(program: ExportedProgram, table: ONNXRegistry) -> ExportedProgram:
        known = {each[0].fx_target for each in table.functions.values() if each}
        return program if made_plain(program, known) else again(program, table)

    def copied(registry: Any, opset_version: int) -> Any:
        key = (registry, opset_version)
        if key not in _kept:
            _kept[key] = own.__get__(None, registry)(opset_version=opset_version)
        table = copy.copy(_kept[key])
        table.functions = {target: list(those) for target, those in table.functions.items()}
        return table

    _fx_passes.decompose_with_registry = plain  # type: ignore[assignment]
    ONNXRegistry.from_torchlib = classmethod(copied)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        _fx_passes.decompose_with_registry = again
        ONNXRegistry.from_torchlib = own  # type: ignore[method-assign]
