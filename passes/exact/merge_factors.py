"""Two matrices in a row, and a matrix beside them -> one, where that is no slower.

    W2 (W1 x + b1) + b2      ->  (W2 W1) x + (W2 b1 + b2)
    W x + s W2 (W1 x)        ->  (W + s W2 W1) x            (LoRA, Hu et al. 2021, arXiv:2106.09685)

holds for any matrices, up to rounding; products are computed in float64.  A call of T tokens by a
matrix [N, K] reads its entries, T K inputs and T N results, and computes 2 T N K operations; it
takes the longer of both, `intensity` operations in the time of an entry, and what one more node
takes beside that, as long as `launch` entries.  Factors stay apart where that is less for them
than for their product, as it is for a low rank of large matrices; for small ones the second node
decides, for many tokens what lies between the two.  Beside a matrix of the same shape they never
pay.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.errors import PassError
from intaglio.passes.analysis.projections import Projection, projections, stem_of, uses
from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import (
    Emitter,
    add_initializer,
    constant,
    dims,
    made_of,
    producer,
    replace_uses,
)

Array = npt.NDArray[Any]


class MergeFactors(Exact):
    """Multiply two matrices in a row, or add LoRA's to its base, where that is no slower."""

    tokens: int = 0
    """Tokens of a call, all rows together; 0: those of the usual shapes (--opt-shapes), or one."""
    intensity: float = 30.0
    """Operations that the target does in the time in which it reads one entry of a matrix."""
    launch: float = 4000.0
    """Entries that the target reads in the time that one more node takes by itself."""
    keep: bool = False
    """Leave factors in a row apart whatever it costs; adapters beside a matrix are merged."""

    def check_options(self, *, data: bool) -> None:  # noqa: ARG002
        """Refuse costs that there are not."""
        if self.tokens < 0 or self.intensity <= 0 or self.launch < 0:
            raise PassError(
                "merge-factors: tokens and launch should be at least 0, intensity above 0."
            )

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Merge adapters first, then factors."""
        self.check_options(data=False)
        tokens = self.tokens or context.tokens or 1
        became: dict[str, dict[str, Any]] = {}
        records = self._adapters(model, tokens, became)
        common.RemoveUnusedNodesPass()(model)  # adapters are no factors by themselves any more
        records += self._factors(model, tokens, became)
        common.RemoveUnusedNodesPass()(model)
        return PassResult(
            changed=any(record["merged"] for record in records),
            notes=[_note(record) for record in records],
            details={
                "factors": records,
                "tokens": tokens,
                "intensity": self.intensity,
                "launch": self.launch,
                "merged": became,
            },
        )

    def cost(self, tokens: int, *shapes: tuple[int, int]) -> float:
        """Time of matrices [N, K] one after the other, as long as reading so many entries."""
        return sum(
            max(n * k + tokens * (n + k), 2 * tokens * n * k / self.intensity) + self.launch
            for n, k in shapes
        )

    def _record(
        self, path: str, kind: str, apart: tuple[float, float], *, merged: bool
    ) -> dict[str, Any]:
        return {"path": path, "kind": kind, "merged": merged, "apart": apart[0], "one": apart[1]}

    def _adapters(
        self, model: ir.Model, tokens: int, became: dict[str, dict[str, Any]]
    ) -> list[dict[str, Any]]:
        records = []
        found = _by_output(model)
        for node in list(model.graph):
            if node.op_type != "Add" or node.domain or node.graph is None:
                continue
            for base, other in (node.inputs, tuple(reversed(node.inputs))):
                beside = _base(base, found)
                pair = None if other is None else _pair(other, found)
                if beside is None or pair is None or base is None:
                    continue
                first, second, scale = pair
                if first.x is not beside.x or first.bias or second.bias:
                    continue
                shapes = [_shape(each) for each in (beside, first, second)]
                apart = (self.cost(tokens, *shapes), self.cost(tokens, shapes[0]))
                weight = _weight(beside) + scale * _weight(second) @ _weight(first)
                became[_put(beside, weight, first, second)] = {
                    "base": beside.weight.name,
                    "second": second.weight.name,
                    "shape": list(_held(second).shape),
                }
                replace_uses(node.outputs[0], base)
                model.graph.remove(node, safe=True)
                records.append(self._record(beside.path, "adapter", apart, merged=True))
                found = _by_output(model)
                break
        return records

    def _factors(
        self, model: ir.Model, tokens: int, became: dict[str, dict[str, Any]]
    ) -> list[dict[str, Any]]:
        records = []
        for value in list(_by_output(model)):
            found = _by_output(model)  # what was merged before has changed what others read
            second = found[value]
            first, biases = _first(second.x, found)
            if first is None or uses(first.weight) != 1 or uses(second.weight) != 1:
                continue
            if biases and second.node.outputs[0].is_graph_output():
                continue  # nothing is behind it that could be given the sum
            product = (second.outputs, first.inputs)
            apart = self.cost(tokens, _shape(first), _shape(second))
            costs = (apart, self.cost(tokens, product))
            merged = costs[1] <= costs[0] and not self.keep
            records.append(self._record(second.path, "factors", costs, merged=merged))
            if merged:
                name, told = _merge(first, second, biases)
                became[name] = told
        return records


def _by_output(model: ir.Model) -> dict[ir.Value, Projection]:
    return {each.node.outputs[0]: each for each in projections(model.graph)}


def _shape(layer: Projection) -> tuple[int, int]:
    return layer.outputs, layer.inputs


def _base(value: ir.Value | None, found: Mapping[ir.Value, Projection]) -> Projection | None:
    """The projection that `value` is, its bias added perhaps, if nothing else reads it."""
    while value is not None and value not in found:
        node = producer(value, "Add")
        if node is None or len(value.uses()) != 1 or value.is_graph_output():
            return None
        data = [each for each in node.inputs if each is not None and constant(each) is None]
        value = data[0] if len(data) == 1 else None
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return found[value] if uses(found[value].weight) == 1 else None


def _pair(
    value: ir.Value, found: Mapping[ir.Value, Projection]
) -> tuple[Projection, Projection, float] | None:
    """Two projections in a row and a number that they are multiplied by, read by nothing else."""
    scale = 1.0
    while value not in found:
        node = producer(value, "Mul", "Div", "Identity", "Dropout")
        if node is None or len(value.uses()) != 1:
            return None
        data = [each for each in node.inputs if each is not None and constant(each) is None]
        numbers = [constant(each) for each in node.inputs if each is not None and each not in data]
        if node.op_type in ("Mul", "Div"):
            if len(data) != 1 or numbers[0] is None or numbers[0].size != 1:
                return None
            if node.op_type == "Div" and node.inputs[0] is not data[0]:
                return None
            number = float(numbers[0].reshape(()))
            scale = scale * number if node.op_type == "Mul" else scale / number
        value = data[0]
    second = found[value]
    first = found.get(second.x)
    alone = len(value.uses()) == 1 and first is not None and len(second.x.uses()) == 1
    return (first, second, scale) if alone and first is not None else None


def _first(
    value: ir.Value, found: Mapping[ir.Value, Projection]
) -> tuple[Projection | None, list[ir.Value]]:
    """The projection that `value` is, plus vectors perhaps, read by nothing else."""
    biases: list[ir.Value] = []
    while len(value.uses()) == 1 and not value.is_graph_output():
        first = found.get(value)
        if first is not None:
            biases += [] if first.bias is None else [first.bias]
            fits = all(_array(bias).shape == (first.outputs,) for bias in biases)
            return (first, biases) if fits else (None, [])
        node = producer(value, "Add")
        inputs = [] if node is None else [each for each in node.inputs if each is not None]
        added = [each for each in inputs if constant(each) is not None]
        if len(inputs) != 2 or len(added) != 1:
            break
        biases += added
        value = inputs[1 - inputs.index(added[0])]
    return None, []


def _merge(
    first: Projection, second: Projection, biases: Sequence[ir.Value]
) -> tuple[str, dict[str, Any]]:
    """Let `second` read what `first` reads, with the product; biases between go behind it.

    Returns:
        The name of the product, and what it was made of.
    """
    moved = [_weight(second) @ _array(bias) for bias in biases]
    name = _put(second, _weight(second) @ _weight(first), first, second)
    told = {
        "first": first.weight.name,
        "second": second.weight.name,
        "by_output": [first.by_output, second.by_output],
    }
    second.node.replace_input_with(0, first.x)
    if not moved:
        return name, told
    result = second.node.outputs[0]
    readers = list(result.uses())
    graph = second.node.graph
    assert graph is not None
    emit = Emitter(next(n for n in graph if n in set(result.consumers())))
    vector = add_initializer(
        graph,
        f"{stem_of(second)}.merged.bias",
        np.sum(moved, axis=0).astype(_held(second).dtype),
        of=[name for each in (*biases, second.weight) for name in made_of(each)],
    )
    added = emit("Add", [result, vector], result.dtype, dims(result))
    for node, index in readers:
        node.replace_input_with(index, added)
    return name, {**told, "bias": [*(each.name for each in biases), vector.name]}


def _array(value: ir.Value) -> Array:
    array = constant(value)
    assert array is not None
    return array.astype(np.float64)


def _weight(layer: Projection) -> Array:
    array = _array(layer.weight)
    return array if layer.by_output else array.T


def _held(layer: Projection) -> Array:
    array = constant(layer.weight)
    assert array is not None
    return array


def _put(layer: Projection, weight: Array, *of: Projection) -> str:
    """Let a layer multiply by `weight` [N, K], which was made of others; the name that it has."""
    graph = layer.node.graph
    assert graph is not None
    held = (weight if layer.by_output else weight.T).astype(_held(layer).dtype)
    sources = dict.fromkeys(n for each in (layer, *of) for n in made_of(each.weight))
    name = f"{stem_of(layer)}.merged.weight"
    made = add_initializer(graph, name, held, of=list(sources))
    operand = layer.node.inputs[1]
    if operand is layer.weight:
        layer.node.replace_input_with(1, made)
    else:
        turned = producer(operand, "Transpose")
        assert turned is not None
        assert operand is not None
        turned.replace_input_with(0, made)
        operand.shape = ir.Shape(list(held.shape[::-1]))
    return name


def _note(record: Mapping[str, Any]) -> str:
    did = "merged" if record["merged"] else "kept apart"
    return (
        f"{record['path']}: {record['kind']} {did}, {record['apart']:,.0f} entries in the time "
        f"apart, {record['one']:,.0f} as one"
    )
