"""What is asked of the nodes of a captured program, and how further ones are made."""

from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

WHOLE = 2**63 - 1  # the end of a slice that goes to the end of its axis


def mutates(node: fx.Node) -> bool:
    """Whether a node writes to what it is given."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def shape_of(node: Any) -> torch.Size:
    """The sizes of the tensor that a node gives."""
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value.shape


def length_of(node: Any, axis: int) -> Any:
    """The size of a node's tensor along `axis`."""
    return shape_of(node)[axis]


def argument(node: Any, index: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by its place or its name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def cuts_nothing(node: Any) -> bool:
    """Whether a slice takes all there is, as ``x[:, None]`` begins with."""
    start, step = argument(node, 2, "start"), argument(node, 4, "step", 1)
    dim = argument(node, 1, "dim", 0)
    sizes = [term(length_of(each, dim)) for each in (node, node.args[0])]
    return start in (None, 0) and step == 1 and sizes[0] == sizes[1]


def term(size: Any) -> Any:
    """A size as an expression of the free sizes."""
    value = size.meta["val"] if isinstance(size, fx.Node) else size
    return value.node.expr if isinstance(value, SymInt) else value


def is_fixed(program: ExportedProgram, node: Any) -> bool:
    """Whether a value is the same in every call, whatever the sizes of the inputs."""
    if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), Tensor):
        return False
    if node.op == "placeholder":
        specs = program.graph_signature.input_specs
        kinds = {spec.arg.name: spec.kind for spec in specs}
        return kinds[node.name] is not InputKind.USER_INPUT
    fixed = all(isinstance(size, int) for size in shape_of(node))
    chance = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return fixed and not chance and all(is_fixed(program, x) for x in node.all_input_nodes)


def name_outputs_anew(program: ExportedProgram) -> None:
    """Let the signature name what the graph returns, after nodes of it were exchanged."""
    returned = next(iter(reversed(program.graph.nodes))).args[0]
    for spec, node in zip(program.graph_signature.output_specs, returned, strict=True):
        if isinstance(node, fx.Node):
            spec.arg.name = node.name


def emitted(like: Any, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A node of `like`'s module, where its graph inserts; its value is known without contents."""
    known = fx.map_arg((args, kwargs), lambda each: each.meta["val"])
    with like.meta["val"].fake_mode:
        value = target(*known[0], **known[1])
    made: fx.Node = like.graph.call_function(target, args, kwargs)
    made.meta = {**like.meta, "val": value}
    return made
