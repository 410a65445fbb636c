"""Names for the dimensions of a graph whose axes are free in steps.

PyTorch counts the steps of such an axis, 32*s7 for ``height=64..512:32``, and says what follows
from it by the number of steps, 16*s7; a user knows the axis alone: height/2.
"""

import re

import onnx_ir as ir
from torch import fx
from torch.export import ExportedProgram

from intaglio.exporter.sources.source import Source
from intaglio.passes.graph import Dim, dims, set_dims


def name_steps(source: Source, program: ExportedProgram, model: ir.Model) -> None:
    """Say dimensions of `model` by the axes of `source`, where they are in numbers of steps."""
    steps = _steps(source, program)
    if not steps:
        return
    for node in model.graph.all_nodes():
        for value in node.outputs:
            shape = dims(value)
            if shape is not None and any(name in str(dim) for name in steps for dim in shape):
                set_dims(value, [_named(dim, steps) for dim in shape])


def _steps(source: Source, program: ExportedProgram) -> dict[str, tuple[str, int]]:
    """PyTorch's symbol for the steps of an axis, and which axis it is, and how long they are."""
    users = set(program.graph_signature.user_inputs)
    taken = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in users]
    found = {}
    for name, node in zip(source.inputs, taken, strict=False):
        for axis, symbol in source.dynamic.get(name, {}).items():
            steps = re.fullmatch(r"(\d+)\*(\w+)", _size(node, axis))
            if steps is not None:
                found[steps[2]] = (symbol, int(steps[1]))
    return found


def _size(node: fx.Node, axis: int) -> str:
    return str(node.meta["val"].shape[axis]).replace(" ", "")


def _named(dim: Dim, steps: dict[str, tuple[str, int]]) -> Dim:
    if not any(name in str(dim) for name in steps):
        return dim
    text = str(dim).replace(" ", "")
    for symbol, (axis, step) in steps.items():
        plain = re.fullmatch(rf"(?:(\d+)\*)?{symbol}", text)
        if plain is None:
            text = re.sub(rf"\b{symbol}\b", f"({axis}/{step})", text)
            continue
        times = int(plain[1] or 1)
        if step % times == 0:
            text = axis if step == times else f"{axis}/{step // times}"
        else:
            text = f"{times // step}*{axis}" if times % step == 0 else f"{times}*({axis}/{step})"
    return text
