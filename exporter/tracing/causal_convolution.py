"""Causal convolutions over all of time, as they are written by Fourier transforms.

A product of transforms of length n is the convolution in a circle of n entries; where n >= 2 L - 1
nothing wraps around into the first L, which are then

    y_t = sum over s <= t of k_{t-s} u_s.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

ATEN = torch.ops.aten
INVERSES = {
    ATEN.fft_irfft.default: ATEN.fft_rfft.default,
    ATEN.fft_ifft.default: ATEN.fft_fft.default,
}
FORWARD = frozenset(INVERSES.values())


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


def axis_of(node: Any) -> int:
    """The axis of a transform, counted from the end."""
    axis: int = argument(node, 2, "dim", -1)
    return axis if axis < 0 else axis - len(shape_of(node))


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


@dataclass(frozen=True)
class FourierConvolution:
    """``inverse(forward(a, n) * forward(b, n), n)`` along `axis`, its first `length` entries.

    `results` are the nodes that hold these entries, real ones.
    """

    factors: tuple[fx.Node, fx.Node]
    axis: int
    length: Any
    results: tuple[fx.Node, ...]

    @classmethod
    def of(cls, inverse: Any) -> "FourierConvolution | None":
        """What `inverse` ends, None for anything else."""
        count, axis = term(argument(inverse, 1, "n")), axis_of(inverse)
        product, roots = _undivided(inverse.args[0], count)
        if not isinstance(product, fx.Node) or product.target is not ATEN.mul.Tensor:
            return None
        parts = [_undivided(each, count) for each in product.args if isinstance(each, fx.Node)]
        transforms = [_with_row(each) for each, _ in parts]
        roots += sum(each for _, each in parts)
        if len(transforms) != 2 or count is None:
            return None
        if any(each.target is not INVERSES[inverse.target] for each in transforms):
            return None
        if any(term(argument(each, 1, "n")) != count for each in (inverse, *transforms)):
            return None
        if any(axis_of(each) != axis for each in transforms):
            return None
        roots += 2 - ROOTS[argument(inverse, 3, "norm")]
        roots += sum(ROOTS[argument(each, 3, "norm")] for each in transforms)
        if roots != 2:
            return None  # the convolution times a number of the length
        a, b = (each.args[0] for each in transforms)
        assert isinstance(a, fx.Node)
        assert isinstance(b, fx.Node)
        lengths = [length_of(each, axis) for each in (a, b)]
        length = term(lengths[0])
        if not isinstance(lengths[0], SymInt) or term(lengths[1]) != length:
            return None
        if any(each.meta["val"].is_complex() for each in (a, b)):
            return None
        if len(shape_of(product)) != max(len(shape_of(each)) for each in (a, b)):
            return None
        room = (count - 2 * length + 1).expand()
        if not (room.is_nonnegative or room == 0):
            return None  # the end of the convolution wraps around into its beginning
        results = tuple(_first_entries(inverse, axis, length))
        if not results or any(each.meta["val"].is_complex() for each in results):
            return None
        return cls((a, b), axis, lengths[0], results)


ROOTS = {None: 0, "backward": 0, "ortho": 1, "forward": 2}
"""By how many roots of its length a transform is divided; its inverse by those that are left."""


def _with_row(node: Any) -> Any:
    """What a row was taken out of, which a product with rows gives it again."""
    first = node.target is ATEN.squeeze.dim and node.args[1] == 0
    return node.args[0] if first and len(shape_of(node)) == 2 else node


def _undivided(node: Any, count: Any) -> tuple[Any, int]:
    """What `node` divides by `count`, and by how many roots of it: two or none."""
    divides = node.target is ATEN.div.Tensor and isinstance(node.args[1], int | fx.Node)
    return (node.args[0], 2) if divides and term(node.args[1]) == count else (node, 0)


def _first_entries(inverse: Any, axis: int, length: Any) -> Iterator[fx.Node]:
    """The nodes that cut the first `length` entries; none where any other is taken."""
    found: list[fx.Node] = []
    waiting: list[Any] = list(inverse.users)
    while waiting:
        node = waiting.pop()
        if node.target is ATEN.real.default and len(node.users):
            waiting.extend(node.users)
            continue
        if node.target is not ATEN.slice.Tensor:
            return
        dim = argument(node, 1, "dim", 0)
        dim = dim if dim < 0 else dim - len(shape_of(node))
        start, step = argument(node, 2, "start"), argument(node, 4, "step", 1)
        if start not in (None, 0) or step != 1 or dim != axis:
            return
        if term(length_of(node, axis)) != length:
            return
        if node.meta["val"].is_complex():
            if any(user.target is not ATEN.real.default for user in node.users):
                return
            found.extend(node.users)
        else:
            found.append(node)
    yield from found


def name_outputs_anew(program: ExportedProgram) -> None:
    """Let the signature name what the graph returns, after nodes of it were exchanged."""
    returned = next(iter(reversed(program.graph.nodes))).args[0]
    for spec, node in zip(program.graph_signature.output_specs, returned, strict=True):
        if isinstance(node, fx.Node):
            spec.arg.name = node.name


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
