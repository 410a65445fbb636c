"""TrtCacheWrites: caches of flags and whole numbers are chosen place by place, and are the same."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.lower.trt_cache_writes import TrtCacheWrites

BATCH, CAPACITY = 3, 5
KINDS = {"bool": np.bool_, "int64": np.int64, "int32": np.int32, "float": np.float32}


def graph_of(kind: str, axis: int, *, at: bool, mode: str = "linear") -> str:
    """A cache [B, 2, places, 3], or with places in front of the 2, and what is written into it."""
    cache, update = (
        f"{kind}[batch, {', '.join(str(d) for d in ([n, 2, 3] if axis == 1 else [2, n, 3]))}]"
        for n in ("capacity", "time")
    )
    index, given = (", int64[batch] at", ", at") if at else ("", "")
    return f"""<ir_version: 10, opset_import: ["" : 24]> g
    ({cache} past, {update} new{index}) => ({cache} present)
    {{ present = TensorScatter <axis = {axis}, mode = "{mode}"> (past, new{given}) }}"""


def given(kind: str, axis: int, tokens: int, *, at: bool) -> dict[str, Any]:
    draw = np.random.default_rng(tokens)
    made: dict[str, Any] = {}
    for name, places in (("past", CAPACITY), ("new", tokens)):
        shape = (BATCH, places, 2, 3) if axis == 1 else (BATCH, 2, places, 3)
        made[name] = draw.integers(0, 2 if kind == "bool" else 2**31 - 1, shape).astype(KINDS[kind])
    if kind == "int64":
        made = {name: x + 2**53 + 1 for name, x in made.items()}  # no float of 64 bits has them all
    if at:
        made["at"] = np.array([0, 2, CAPACITY - tokens], np.int64)
    return made


@pytest.mark.parametrize("kind", ["bool", "int64", "int32"])
@pytest.mark.parametrize(("axis", "at"), [(1, True), (2, True), (-2, False)])
def test_what_is_written_is_the_same(kind: str, axis: int, at: bool) -> None:
    """From another place in each row, of one token or several, to the last bit."""
    model = ir.from_onnx_text(graph_of(kind, axis, at=at))
    standard = ReferenceEvaluator(onnx.parser.parse_model(graph_of(kind, axis, at=at)))
    result = TrtCacheWrites().run(model, Context())

    assert result.changed
    assert "TensorScatter" not in {node.op_type for node in model.graph}
    for tokens in (1, 3):
        arrays = given(kind, axis, tokens, at=at)
        (wanted,) = standard.run(None, arrays)
        found = evaluate.run(model, arrays)["present"]
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("kind", "mode"), [("float", "linear"), ("bool", "circular")])
def test_the_others_stay(kind: str, mode: str) -> None:
    """Floats, which TensorRT writes itself, and rings."""
    model = ir.from_onnx_text(graph_of(kind, 1, at=True, mode=mode))

    assert not TrtCacheWrites().run(model, Context()).changed
    assert [node.op_type for node in model.graph] == ["TensorScatter"]
