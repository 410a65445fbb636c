"""Products with a trained matrix: what a pass that changes weights works on.

A projection is a MatMul with a parameter [K, N], with the transpose of one [N, K], as
torch.nn.Linear holds it, or a plain Gemm.  Each has the path by which the source's author knows
it: the module that owns the weight, or that uses it where the weight is tied to another one's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from intaglio.graph_keys import FOLDED
from intaglio.passes.graph import attribute, input_of, module_of, producer


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Y = X W^T (+ bias): `node` computes it from `x` [..., K] and the initializer `weight`.

    The weight is stored as [N, K] if `by_output`, else as [K, N].
    """

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    by_output: bool
    bias: ir.Value | None
    path: str

    @property
    def outputs(self) -> int:
        """N."""
        return self._shape[0 if self.by_output else 1]

    @property
    def inputs(self) -> int:
        """K."""
        return self._shape[1 if self.by_output else 0]

    @property
    def _shape(self) -> tuple[int, int]:
        tensor = self.weight.const_value
        assert tensor is not None
        rows, columns = tensor.shape.numpy()
        return rows, columns


def projections(graph: ir.Graph) -> Iterator[Projection]:
    """Every projection of `graph`, in the order in which they are computed."""
    for node in graph:
        found = _weight(node)
        x = input_of(node, 0)
        if found is None or x is None:
            continue
        weight, by_output = found
        yield Projection(
            node=node,
            x=x,
            weight=weight,
            by_output=by_output,
            bias=input_of(node, 2) if node.op_type == "Gemm" else None,
            path=_path(node, weight),
        )


def stem_of(layer: Projection) -> str:
    """What is made of a layer's weight is named after this, so that it has a path below its own."""
    stem = (layer.weight.name or "").removesuffix(".weight")
    return stem if f"{stem}.".startswith(f"{layer.path}.") else f"{layer.path}.{stem}"


def uses(weight: ir.Value) -> int:
    """How many times a parameter is used, its transposes followed."""
    return sum(
        uses(node.outputs[0]) if node.op_type == "Transpose" and not node.domain else 1
        for node, _ in weight.uses()
    )


def look_ups(weight: ir.Value) -> list[ir.Node]:
    """Nodes that take whole rows of a parameter, as embeddings are looked up."""
    gathers = [node for node, index in weight.uses() if node.op_type == "Gather" and index == 0]
    return [node for node in gathers if not node.domain and attribute(node, "axis", 0) == 0]


def _weight(node: ir.Node) -> tuple[ir.Value, bool] | None:
    """The parameter that `node` multiplies by, and whether a row of it is an output's."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    by_output = False
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        if not plain or attribute(node, "transA", 0):
            return None
        by_output = bool(attribute(node, "transB", 0))
    value = node.inputs[1]
    turned = producer(value, "Transpose")
    if turned is not None and list(attribute(turned, "perm", [1, 0])) == [1, 0]:
        value, by_output = turned.inputs[0], not by_output
    return (value, by_output) if value is not None and _is_matrix(value) else None


def _is_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or not value.is_initializer() or FOLDED in value.metadata_props:
        return False
    return len(tensor.shape) == 2 and tensor.dtype.is_floating_point()


def _path(node: ir.Node, weight: ir.Value) -> str:
    module, stem = module_of(node), (weight.name or "").removesuffix(".weight")
    return stem if not module or f"{stem}.".startswith(f"{module}.") else module
