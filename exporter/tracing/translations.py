"""How operations of PyTorch are written in ONNX: ours, and PyTorch's own table kept."""

import contextlib
import copy
import sys
from collections.abc import Iterator
from typing import Any

import onnxscript
import torch
from torch import fx
from torch.export import ExportedProgram

from intaglio.ops import OPS

_OURS = {op.torch_op: op.translation for op in OPS if op.translation is not None}
_kept: dict[tuple[Any, ...], Any] = {}


def translations() -> dict[Any, Any]:
    """What custom operations are written as: ours, and torchvision's where a model brings it."""
    found: dict[Any, Any] = dict(_OURS)
    with contextlib.suppress(AttributeError):
        found[torch.ops.torchvision.nms.default] = _suppressed
    return found


def _suppressed(dets: Any, scores: Any, iou_threshold: float) -> Any:
    """Suppression of boxes [N, 4] that overlap a better one -> which are kept, best first."""
    op = onnxscript.opset23
    boxes, rated = op.Unsqueeze(dets, [0]), op.Unsqueeze(scores, [0, 1])
    most = op.Constant(value_ints=[sys.maxsize])
    kept = op.NonMaxSuppression(boxes, rated, most, op.Constant(value_floats=[iou_threshold]))
    return op.Squeeze(op.Gather(kept, [2], axis=1), [1])


@contextlib.contextmanager
def swift_translations() -> Iterator[None]:
    """Let PyTorch's exporter keep its table of translations, and not trace what is plain already.

    It makes the table anew for each model and parses the source text of some 500 functions to do
    so, which takes longer than all else of a small export.  Each model is given a copy, so that
    what is added for one is not there for another.  It traces each program twice more to write
    composite operations as plain ones, see `plain_ops`, and once to find where dtypes mix: the
    values that the capture noted tell their dtypes, and only what is cast there is run.  A version
    of PyTorch that has these elsewhere goes on doing all three.
    """
    try:
        from torch.onnx._internal.exporter import _fx_passes
        from torch.onnx._internal.exporter._registration import ONNXRegistry
        from torch.onnx._internal.fx.passes import type_promotion

        from .joined_pieces import join_pieces
        from .plain_ops import made_plain

        own, again = ONNXRegistry.__dict__["from_torchlib"], _fx_passes.decompose_with_registry
        promoting = type_promotion._TypePromotionInterpreter  # noqa: SLF001
        rule_of, run_again = type_promotion.get_type_promotion_rule, promoting.run_node
    except (AttributeError, ImportError, KeyError):
        yield
        return

    def plain(program: ExportedProgram, table: ONNXRegistry) -> ExportedProgram:
        known = {each[0].fx_target for each in table.functions.values() if each}
        done = program if made_plain(program, known) else again(program, table)
        return join_pieces(done)

    def copied(registry: Any, opset_version: int) -> Any:
        key = (registry, opset_version)
        if key not in _kept:
            _kept[key] = own.__get__(None, registry)(opset_version=opset_version)
        table = copy.copy(_kept[key])
        table.functions = {target: list(those) for target, those in table.functions.items()}
        return table

    def promoted(interpreter: Any, node: fx.Node) -> Any:
        if "val" not in node.meta:
            return run_again(interpreter, node)
        with interpreter._set_current_node(node):  # noqa: SLF001
            if rule := rule_of(node, interpreter.type_promotion_table):
                interpreter._maybe_promote_node(node, rule)  # noqa: SLF001
        return node.meta["val"]

    _fx_passes.decompose_with_registry = plain  # type: ignore[assignment]
    promoting.run_node = promoted  # type: ignore[assignment, method-assign]
    ONNXRegistry.from_torchlib = classmethod(copied)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        _fx_passes.decompose_with_registry = again
        promoting.run_node = run_again  # type: ignore[method-assign]
        ONNXRegistry.from_torchlib = own  # type: ignore[method-assign]
