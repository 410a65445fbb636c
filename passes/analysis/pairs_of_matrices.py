"""Modules of two matrices that share channels which nothing else sees: feed-forwards and heads.

A feed-forward is a projection whose input is computed entry by entry from other projections.  An
attention has heads of queries and keys, and of values and what projects them, each a projection
that is cut into heads, turned by positions where it is.  Every value between the two matrices has
to be read by nothing else, so that a channel may leave both.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from intaglio.passes.graph import constant, dims, input_of, module_of, producer

from .coupling_rules import ELEMENTWISE, ENTRIES
from .projections import Projection, projections, uses
from .rotations import Rotation, rotation_of

ENTRYWISE = ENTRIES - {"Softmax", "LogSoftmax", "LpNormalization"}
STEPS = 64  # nodes that a rotation is made of at most


class SharedChannelsError(Exception):
    """Channels are seen by more than their two matrices; the text says by what."""


@dataclass(frozen=True, kw_only=True)
class FeedForwardPair:
    """`down` reads what is computed from `ups` entry by entry; `values` are all [..., channels].

    `reshapes` are nodes between them that join or part other axes.
    """

    path: str
    ups: tuple[Projection, ...]
    down: Projection
    vectors: tuple[ir.Value, ...]
    values: tuple[ir.Value, ...]
    reshapes: tuple[ir.Node, ...] = ()

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.down.inputs


@dataclass(frozen=True, kw_only=True)
class HeadProjection:
    """A projection cut into `heads` of `size`: `flat` is [batch, time, heads * size].

    `values` are those from the projection to `flat`, which `bias` is added to on the way.
    """

    projection: Projection
    bias: ir.Value | None
    flat: ir.Value
    heads: int
    size: int
    rotation: Rotation | None = None
    values: tuple[ir.Value, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class HeadsOut:
    """The projection that reads heads of an attention: `heads` of `size`, merged."""

    projection: Projection
    heads: int
    size: int


def block_of(path: str) -> str | None:
    """The path of the block of a stack that a module lies in: up to the first number."""
    found = re.match(r"(.*?\.\d+)(?:\.|$)", f"{path}")
    return None if found is None else found.group(1)


def feed_forwards(graph: ir.Graph) -> Iterator[FeedForwardPair | tuple[str, str]]:
    """Every feed-forward, or the path of a projection behind one, and why it is none."""
    found = {each.node.outputs[0]: each for each in projections(graph)}
    for down in found.values():
        try:
            made = _feed_forward(down, found)
        except SharedChannelsError as error:
            yield down.path, str(error)
            continue
        if made is not None:
            yield made


def _feed_forward(down: Projection, found: Mapping[ir.Value, Projection]) -> FeedForwardPair | None:
    ups: dict[Projection, None] = {}
    vectors: dict[ir.Value, None] = {}
    values: dict[ir.Value, None] = {}
    reshapes: dict[ir.Node, None] = {}
    pending, bends = [down.x], False
    while pending:
        value = pending.pop()
        if value in values:
            continue
        node = value.producer()
        if value in found:
            ups[found[value]] = None
            if found[value].bias is not None:
                vectors[found[value].bias] = None  # type: ignore[index]
        elif node is not None and _keeps_channels(node):
            reshapes[node] = None
            pending.append(node.inputs[0])  # type: ignore[arg-type]
        elif node is None or node.domain or node.op_type not in ELEMENTWISE | ENTRYWISE:
            return None
        else:
            bends = bends or node.op_type in ENTRYWISE - {"Cast", "Identity", "Dropout"}
            for each in node.inputs:
                if each is not None and not _is_number(each):
                    array = constant(each)
                    if array is None:
                        pending.append(each)
                    elif array.shape == (down.inputs,) and each.is_initializer():
                        vectors[each] = None
                    else:
                        return None
        values[value] = None
    if not ups or not bends or any((dims(v) or ("?",))[-1] != down.inputs for v in values):
        return None
    _require_alone(values, {down.node})
    for weight in [*(up.weight for up in ups), down.weight, *vectors]:
        if uses(weight) != 1:
            raise SharedChannelsError(f"the weight {weight.name!r} is used elsewhere, too")
    first = next(iter(ups))
    return FeedForwardPair(
        path=_shared(first.path, down.path),
        ups=tuple(ups),
        down=down,
        vectors=tuple(vectors),
        values=tuple(values),
        reshapes=tuple(reshapes),
    )


def _keeps_channels(node: ir.Node) -> bool:
    """Whether it gives other axes than the last another shape."""
    if node.op_type != "Reshape" or node.domain:
        return False
    last = [(dims(each) or ("?",))[-1] for each in (node.inputs[0], node.outputs[0]) if each]
    return len(last) == 2 and isinstance(last[0], int) and last[0] == last[1]


def _require_alone(values: Mapping[ir.Value, None], last: set[ir.Node]) -> None:
    """Refuse values that are read by others than those that make the next one of them."""
    makers = {value.producer() for value in values}
    for value in values:
        if value.is_graph_output() or any(n not in makers | last for n in value.consumers()):
            raise SharedChannelsError(f"its channels are read elsewhere, too ({value.name})")


def _is_number(value: ir.Value) -> bool:
    array = constant(value)
    return array is not None and array.size == 1


def _shared(a: str, b: str) -> str:
    parts = []
    for one, other in zip(a.split("."), b.split("."), strict=False):
        if one != other:
            break
        parts.append(one)
    return ".".join(parts) or b


def heads_of(
    attention: ir.Node, index: int, found: Mapping[ir.Value, Projection]
) -> HeadProjection:
    """The projection behind queries (0), keys (1) or values (2) of an attention.

    Raises:
        UnfitError: if something else than bias, scale and rotation is between them.
    """
    value = input_of(attention, index)
    shape = dims(value) or ()
    if value is None or len(shape) != 4 or not all(isinstance(shape[i], int) for i in (1, 3)):
        raise SharedChannelsError("its heads are not [batch, heads, time, size]")
    node = value.producer()
    rotation = None if node is None else rotation_of(node, _is_table)
    base = value if rotation is None else rotation.x
    turned = producer(base, "Transpose")
    if turned is None or list(turned.attributes["perm"].value) != [0, 2, 1, 3]:
        raise SharedChannelsError(_between(base))
    cut = producer(turned.inputs[0], "Reshape")
    heads, size = int(shape[1]), int(shape[3])
    flat = None if cut is None else cut.inputs[0]
    if flat is None or (dims(flat) or ())[-1:] != (heads * size,) or len(dims(flat) or ()) != 3:
        raise SharedChannelsError(_between(turned.inputs[0]))
    projection, bias, values = _projected(flat, found)
    if rotation is not None:
        _require_within(base, value)
    chain = dict.fromkeys([*values, turned.inputs[0], *([base] if rotation is None else [])])
    for each in chain:
        if each is not None and (len(each.uses()) != 1 or each.is_graph_output()):
            raise SharedChannelsError(f"what it projects is read elsewhere, too ({each.name})")
    if len(value.uses()) != 1:
        raise SharedChannelsError("its heads are read elsewhere, too")
    if uses(projection.weight) != 1:
        raise SharedChannelsError(f"the weight {projection.weight.name!r} is used elsewhere, too")
    return HeadProjection(
        projection=projection,
        bias=bias,
        flat=flat,
        heads=heads,
        size=size,
        rotation=rotation,
        values=tuple(values),
    )


def _projected(
    flat: ir.Value, found: Mapping[ir.Value, Projection]
) -> tuple[Projection, ir.Value | None, list[ir.Value]]:
    """The projection that `flat` is, times numbers and plus a vector, and what is between."""
    value, bias, values = flat, None, [flat]
    while value not in found:
        node = producer(value, "Add", "Mul", "Div")
        if node is None:
            raise SharedChannelsError(_between(value))
        inputs = [each for each in node.inputs if each is not None]
        fixed = [each for each in inputs if constant(each) is not None]
        array = constant(fixed[0]) if len(fixed) == 1 else None
        others = [each for each in inputs if each not in fixed]
        vector = array is not None and array.shape == (dims(flat) or ())[-1:]
        added = node.op_type == "Add" and vector and bias is None and fixed[0].is_initializer()
        scaled = node.op_type != "Add" and array is not None and array.size == 1
        if (
            not others
            or not (added or scaled)
            or (scaled and fixed[0] is inputs[0] and node.op_type == "Div")
        ):
            raise SharedChannelsError(_between(value))
        if added:
            bias = fixed[0]
            if uses(bias) != 1:
                raise SharedChannelsError(f"the bias {bias.name!r} is used elsewhere, too")
        value = others[0]
        values.append(value)
    if bias is not None and found[value].bias is not None:
        raise SharedChannelsError("it has two biases")
    return found[value], bias if bias is not None else found[value].bias, values


def _between(value: ir.Value | None) -> str:
    node = None if value is None else value.producer()
    name = "an input" if node is None else node.op_type
    where = "" if node is None or not module_of(node) else f" of {module_of(node)}"
    return f"{name}{where} stands between the projection and the heads"


def _require_within(start: ir.Value, end: ir.Value) -> None:
    """Refuse a value from which more follows than `end`."""
    pending, seen = [start], 0
    while pending:
        value = pending.pop()
        seen += 1
        if value is end:
            continue
        if value.is_graph_output() or seen > STEPS:
            raise SharedChannelsError("what is rotated is read elsewhere, too")
        pending += [out for node in value.consumers() for out in node.outputs]


def _is_table(value: ir.Value, size: int) -> bool:
    shape = dims(value) or ()
    heads = shape[1:2] if len(shape) == 4 else (1,)
    return 2 <= len(shape) <= 4 and shape[-1] == size and heads == (1,)


def heads_out(attention: ir.Node, found: Mapping[ir.Value, Projection]) -> HeadsOut:
    """The projection that reads the result of an attention.

    Raises:
        UnfitError: if something else reads it.
    """
    result = attention.outputs[0]
    shape = dims(result) or ()
    readers = {each.x: each for each in found.values()}
    turned = _only(result, "Transpose")
    merged = _only(turned, "Reshape")
    if merged not in readers or len(merged.uses()) != 1 or len(shape) != 4:
        raise SharedChannelsError("what it mixes goes elsewhere than into one projection")
    projection = readers[merged]
    if uses(projection.weight) != 1 or projection.inputs != int(shape[1]) * int(shape[3]):
        raise SharedChannelsError(f"the weight {projection.weight.name!r} is used elsewhere, too")
    return HeadsOut(projection=projection, heads=int(shape[1]), size=int(shape[3]))


def _only(value: ir.Value, op: str) -> ir.Value:
    """The result of the only node that reads `value`."""
    readers = list(value.consumers())
    if len(readers) != 1 or readers[0].op_type != op or value.is_graph_output():
        raise SharedChannelsError("what it mixes goes elsewhere than into one projection")
    return readers[0].outputs[0]
