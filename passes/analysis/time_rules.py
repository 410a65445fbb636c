"""How each ONNX operator carries a time axis: one small rule per family of operators.

A rule takes the node and the facts so far and returns the facts of the node's outputs, or raises
the refusal.  Operators without a rule are refused as soon as time reaches them.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import onnx_ir as ir

from intaglio.passes.graph import attribute, constant, dims, input_of, integers
from intaglio.state import BATCH, TIME

from .time import LENGTH, Along, Fact, Length, Timing, refuse

Rule = Callable[[ir.Node, Timing], Sequence[Fact]]

ELEMENTWISE = frozenset(
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr "
    "BitwiseXor Cast CastLike Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater "
    "GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max "
    "Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor".split()
)


def propagate(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """Facts of the outputs of `node`.

    Raises:
        PassError: the node mixes tokens, or no rule tells that it does not.
    """
    key = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    if key in ("Shape", "Size"):
        return [_shape(node, timing)]
    facts = [timing.of(value) for value in node.inputs]
    if all(fact is None for fact in facts):
        return [None] * len(node.outputs)
    if key in SOURCES and (found := SOURCES[key](node, timing)) is not None:
        timing.sources.append(node)
        return [found]
    if not any(isinstance(fact, Along) for fact in facts):
        return _of_length(node)
    _check_padding(node, key, [fact for fact in facts if isinstance(fact, Along)])
    if key in ELEMENTWISE:
        return [_elementwise(node, timing)] * len(node.outputs)
    rule = RULES.get(key)
    if rule is None:
        raise refuse(
            node, "is not known to act on each token alone, so it cannot be part of a step graph."
        )
    return rule(node, timing)


def _check_padding(node: ir.Node, key: str, facts: Sequence[Along]) -> None:
    """Zeros before the tokens must stay zeros; what comes after them is cut, so may change."""
    may_follow = key in MOVES_ZEROS
    if not any(fact.lead for fact in facts):
        may_follow = may_follow or key in ELEMENTWISE or key == "Slice"
    if any(fact.lead or fact.trail for fact in facts) and not may_follow:
        raise refuse(
            node,
            "uses a sequence that was padded in time; only a causal convolution may follow a Pad "
            "along time.",
        )


# Where length and positions begin


def _shape(node: ir.Node, timing: Timing) -> Fact:
    fact = timing.of(node.inputs[0])
    if not isinstance(fact, Along):
        return fact
    if node.op_type == "Size":
        return LENGTH
    rank = len(dims(node.inputs[0]) or ()) or fact.axis + 1
    picked = range(rank)[slice(attribute(node, "start", 0), attribute(node, "end"))]
    return LENGTH if fact.axis in picked else None


def _of_length(node: ir.Node) -> Sequence[Fact]:
    """Facts where only lengths come in: numbers stay numbers, arrays sized by T lie along time."""
    facts: list[Fact] = []
    for output in node.outputs:
        axes = [axis for axis, dim in enumerate(dims(output) or ()) if TIME in str(dim)]
        if not axes:
            facts.append(LENGTH)
            continue
        if node.op_type not in ("Expand", "ConstantOfShape") or len(axes) > 1:
            raise refuse(
                node,
                "makes an array that is sized by the number of tokens in a way not known here.",
            )
        shape = dims(output) or ()
        _symbol(node, shape[axes[0]])
        facts.append(Along(axes[0], flat=shape[axes[0]] != TIME))
    return facts


def _symbol(node: ir.Node, dim: int | str) -> None:
    if dim not in (TIME, f"{BATCH}*{TIME}"):
        raise refuse(node, f"has a dimension {dim!r} that is not one entry per token.")


def _range(node: ir.Node, _timing: Timing) -> Fact:
    start, step = constant(node.inputs[0]), constant(node.inputs[2])
    if dims(node.outputs[0]) != (TIME,) or start is None or step is None or step.item() != 1:
        raise refuse(node, "counts over time in steps that are not the positions 0, 1, 2, ...")
    return Along(0, positional=True)


def _table(node: ir.Node, timing: Timing) -> Fact:
    """`table[:T]`: rows of a constant table, one for each position."""
    if timing.of(node.inputs[0]) is not None:
        return None
    shape = dims(node.outputs[0]) or ()
    axes = [axis for axis, dim in enumerate(shape) if TIME in str(dim)]
    if not axes:
        return None
    starts, steps = integers(node.inputs[1]), integers(input_of(node, 4)) or [1]
    if len(axes) > 1 or shape[axes[0]] != TIME or starts != [0] or steps != [1]:
        raise refuse(node, "takes other rows of a table than those of the positions 0 to T-1.")
    return Along(axes[0], positional=True)


SOURCES: dict[str, Callable[[ir.Node, Timing], Fact]] = {"Range": _range, "Slice": _table}


# Operators that keep each token apart


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _elementwise(node: ir.Node, timing: Timing) -> Fact:
    """Numpy broadcasting: all time axes must fall on one axis of the output."""
    ranks = [_rank(value) for value in node.inputs if value is not None]
    if any(rank is None for rank in ranks):
        raise refuse(node, "has an input of unknown shape.")
    rank = max(r for r in ranks if r is not None)
    along: list[Along] = []
    for value in node.inputs:
        fact = timing.of(value)
        if value is None or fact is None:
            continue
        if isinstance(fact, Length):
            if node.op_type == "CastLike":
                continue
            raise refuse(node, "computes with the number of tokens, which a step does not know.")
        along.append(_shifted(fact, rank - len(value.shape or ())))
    places = {(fact.axis, fact.flat, fact.lead, fact.trail) for fact in along}
    if len(places) != 1:
        raise refuse(node, "combines entries of different tokens.")
    axis = along[0].axis
    for value in node.inputs:
        shape = () if value is None or timing.of(value) is not None else dims(value) or ()
        if axis - rank >= -len(shape) and shape[axis - rank] != 1:
            raise refuse(
                node,
                f"combines the time axis with a constant of {shape[axis - rank]} entries: "
                "the number of tokens was frozen when the model was traced or trained.",
            )
    positional = all(fact.positional for fact in along) and _batchless(node.outputs[0])
    return Along(axis, along[0].flat, positional, along[0].lead, along[0].trail)


def _batchless(value: ir.Value) -> bool:
    return all(BATCH not in str(dim) for dim in dims(value) or ())


def _shifted(fact: Along, by: int) -> Along:
    return Along(fact.axis + by, fact.flat, fact.positional, fact.lead, fact.trail)


def _moved(fact: Along, axis: int, *, flat: bool | None = None) -> Along:
    flat = fact.flat if flat is None else flat
    return Along(axis, flat, fact.positional, fact.lead, fact.trail)


def _only(node: ir.Node, timing: Timing, index: int = 0) -> Along:
    """The fact of input `index`; no other input may depend on tokens."""
    fact = timing.of(node.inputs[index])
    others = [timing.of(v) for i, v in enumerate(node.inputs) if i != index]
    if not isinstance(fact, Along) or any(isinstance(other, Along) for other in others):
        raise refuse(node, "takes values of tokens where only constants keep tokens apart.")
    return fact


def _normal(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _transpose(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = _only(node, timing)
    rank = len(dims(node.inputs[0]) or ())
    perm = list(attribute(node, "perm") or reversed(range(rank)))
    return [_moved(fact, perm.index(fact.axis))]


def _unsqueeze(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact, added = _only(node, timing), integers(node.inputs[1])
    if added is None:
        raise refuse(node, "adds axes that are not constant.")
    rank = len(dims(node.inputs[0]) or ()) + len(added)
    new = {_normal(axis, rank) for axis in added}
    kept = [axis for axis in range(rank) if axis not in new]
    return [_moved(fact, kept[fact.axis])]


def _squeeze(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact, gone = _only(node, timing), integers(input_of(node, 1))
    rank = len(dims(node.inputs[0]) or ())
    if gone is None or fact.axis in {_normal(axis, rank) for axis in gone}:
        raise refuse(node, "squeezes the time axis: the number of tokens was frozen to one.")
    return [_moved(fact, fact.axis - sum(_normal(axis, rank) < fact.axis for axis in gone))]


def _factors(shape: Sequence[int | str]) -> tuple[int, Counter[str]]:
    """A product of dimensions as its integer part and its symbols."""
    number, symbols = 1, Counter[str]()
    for dim in shape:
        for factor in str(dim).replace("(", "").replace(")", "").split("*"):
            if factor.strip().isdigit():
                number *= int(factor)
            else:
                symbols[factor.strip()] += 1
    return number, symbols


def _reshape(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = _only(node, timing)
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before is None or after is None:
        raise refuse(node, "has an unknown shape.")
    outer = _factors(before[: fact.axis])
    length = _factors(before[fact.axis : fact.axis + 1])
    for axis, dim in enumerate(after):
        if _factors(after[:axis]) == outer and _factors([dim]) == length:
            return [_moved(fact, axis)]
        if fact.flat and axis and tuple(after[axis - 1 : axis + 1]) == (BATCH, TIME):
            if _factors(after[: axis - 1]) == outer:
                return [_moved(fact, axis, flat=False)]
            continue
        if fact.flat or not fact.axis or before[fact.axis - 1] != BATCH:
            continue
        rows = _factors(before[: fact.axis - 1])
        if _factors([dim]) == _factors([BATCH, TIME]) and _factors(after[:axis]) == rows:
            return [_moved(fact, axis, flat=True)]
    raise refuse(
        node,
        f"reshapes {list(before)} to {list(after)}, which loses the time axis: the number of "
        "tokens is merged with something else or was frozen to a constant.",
    )


def _expand(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = timing.of(node.inputs[0])
    shape = dims(node.outputs[0])
    if not isinstance(fact, Along) or shape is None:
        raise refuse(node, "expands to a shape that is not known.")
    moved = _shifted(fact, len(shape) - len(dims(node.inputs[0]) or ()))
    if TIME not in str(shape[moved.axis]) or sum(TIME in str(dim) for dim in shape) > 1:
        raise refuse(node, "repeats entries along time.")
    return [Along(moved.axis, moved.flat, moved.positional and _batchless(node.outputs[0]))]


def _concat(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    rank = len(dims(node.outputs[0]) or ())
    axis = _normal(attribute(node, "axis"), rank)
    facts = [timing.of(value) for value in node.inputs]
    along = [fact for fact in facts if isinstance(fact, Along)]
    if len(along) < len(facts) or len({(f.axis, f.flat, f.lead, f.trail) for f in along}) > 1:
        raise refuse(node, "joins values that do not all lie along time in the same way.")
    if axis == along[0].axis:
        raise refuse(node, "joins sequences along time.")
    fact = along[0]
    positional = all(f.positional for f in along) and _batchless(node.outputs[0])
    return [Along(fact.axis, fact.flat, positional, fact.lead, fact.trail)]


def _split(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = _only(node, timing)
    rank = len(dims(node.inputs[0]) or ())
    if _normal(attribute(node, "axis", 0), rank) == fact.axis:
        raise refuse(node, "splits the sequence along time.")
    return [fact] * len(node.outputs)


def _slice(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = timing.of(node.inputs[0])
    starts, ends = integers(node.inputs[1]), input_of(node, 2)
    rank = len(dims(node.inputs[0]) or ())
    axes, steps = integers(input_of(node, 3)), integers(input_of(node, 4))
    if not isinstance(fact, Along) or starts is None or ends is None:
        raise refuse(node, "slices at places that depend on the number of tokens.")
    axes = [_normal(axis, rank) for axis in axes or range(len(starts))]
    if fact.axis not in axes:
        return [fact]
    at = axes.index(fact.axis)
    kept = (dims(node.outputs[0]) or ())[fact.axis]
    if starts[at] == 0 and (steps or [1] * len(axes))[at] == 1 and kept == TIME and not fact.flat:
        return [Along(fact.axis, False, fact.positional, fact.lead, 0)]
    raise refuse(node, "takes only some of the tokens, or takes them in another order.")


def _pad(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact, pads = _only(node, timing), integers(node.inputs[1])
    rank = len(dims(node.inputs[0]) or ())
    axes = integers(input_of(node, 3)) or list(range(rank))
    if pads is None:
        raise refuse(node, "pads by amounts that are not constant.")
    where = [_normal(axis, rank) for axis in axes]
    if fact.axis not in where:
        return [fact]
    at = where.index(fact.axis)
    lead, trail = pads[at], pads[at + len(where)]
    fill = constant(input_of(node, 2))
    zero = fill is None or not fill.any()
    if attribute(node, "mode", "constant") not in ("constant", b"constant") or not zero:
        raise refuse(node, "pads the sequence in time with something else than zeros.")
    if fact.lead + lead < 0 or fact.trail + trail < 0:
        raise refuse(node, "cuts tokens off the sequence.")
    flat, positional = fact.flat, fact.positional
    return [Along(fact.axis, flat, positional, fact.lead + lead, fact.trail + trail)]


def _gather(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    data, indices = timing.of(node.inputs[0]), timing.of(node.inputs[1])
    rank, picks = len(dims(node.inputs[0]) or ()), len(dims(node.inputs[1]) or ())
    axis = _normal(attribute(node, "axis", 0), rank)
    if data is None and isinstance(indices, Along):
        return [_shifted(indices, axis)]
    if isinstance(data, Along) and indices is None:
        if axis == data.axis:
            raise refuse(node, "picks tokens out of the sequence.")
        return [_moved(data, data.axis if data.axis < axis else data.axis + picks - 1)]
    raise refuse(node, "picks entries of one token by another.")


def _along_elements(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """GatherElements and ScatterElements on another axis than time."""
    rank = len(dims(node.inputs[0]) or ())
    axis = _normal(attribute(node, "axis", 0), rank)
    along = {fact for fact in map(timing.of, node.inputs) if isinstance(fact, Along)}
    places = {(fact.axis, fact.flat) for fact in along}
    whole = all(timing.of(value) is not None for value in node.inputs)
    if len(places) > 1 or not whole or axis in {fact.axis for fact in along}:
        raise refuse(node, "moves entries between tokens.")
    fact = next(iter(along))
    return [Along(fact.axis, fact.flat)]


def _matmul(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    left, right = (timing.of(value) for value in node.inputs)
    ranks = [len(dims(value) or ()) for value in node.inputs if value is not None]
    if min(ranks) < 2 or isinstance(left, Length) or isinstance(right, Length):
        raise refuse(node, "multiplies vectors or lengths.")
    rank = max(ranks)
    along = [
        (side, _shifted(fact, rank - ranks[side]))
        for side, fact in enumerate((left, right))
        if isinstance(fact, Along)
    ]
    for side, fact in along:
        if fact.axis == rank - 1 - side:
            raise refuse(node, f"sums over time. {ATTENTION}")
    if len({(fact.axis, fact.flat) for _, fact in along}) > 1:
        raise refuse(node, f"compares each token with every other. {ATTENTION}")
    if len(along) == 2 and along[0][1].axis >= rank - 2:
        raise refuse(node, f"compares each token with every other. {ATTENTION}")
    axis = along[0][1].axis
    positional = all(fact.positional for _, fact in along) and _batchless(node.outputs[0])
    return [Along(axis, along[0][1].flat, positional)]


ATTENTION = (
    "Attention written out as MatMul, Softmax, MatMul cannot be given a cache: "
    "use torch.nn.functional.scaled_dot_product_attention."
)


def _gemm(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = _only(node, timing)
    if fact.axis != (1 if attribute(node, "transA", 0) else 0):
        raise refuse(node, "sums over time.")
    return [_moved(fact, 0)]


def _einsum(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    equation = str(attribute(node, "equation")).replace(" ", "")
    terms, _, result = equation.partition("->")
    letters = {
        term[fact.axis]
        for term, fact in zip(terms.split(","), map(timing.of, node.inputs), strict=True)
        if isinstance(fact, Along) and "." not in term
    }
    facts = [fact for fact in map(timing.of, node.inputs) if isinstance(fact, Along)]
    letter = next(iter(letters), "")
    if len(letters) != 1 or letter not in result or "." in equation:
        raise refuse(node, f"sums over time or compares tokens ({equation}).")
    inside = all(
        letter not in term or isinstance(timing.of(value), Along)
        for term, value in zip(terms.split(","), node.inputs, strict=True)
    )
    if not inside or len({fact.flat for fact in facts}) > 1:
        raise refuse(node, f"combines the time axis with a constant ({equation}).")
    positional = all(fact.positional for fact in facts) and _batchless(node.outputs[0])
    return [Along(result.index(letter), facts[0].flat, positional)]


def _reduce(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = _only(node, timing)
    rank = len(dims(node.inputs[0]) or ())
    keep = attribute(node, "keepdims", 1)
    if node.op_type in ("ArgMax", "ArgMin"):
        axes = [_normal(attribute(node, "axis", 0), rank)]
    else:
        given = integers(input_of(node, 1)) or attribute(node, "axes") or range(rank)
        axes = [_normal(axis, rank) for axis in given]
    if fact.axis in axes:
        raise refuse(node, "reduces over time: its result would need every token at once.")
    return [_moved(fact, fact.axis if keep else fact.axis - sum(a < fact.axis for a in axes))]


def _softmax(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = _only(node, timing)
    if _normal(attribute(node, "axis", -1), len(dims(node.inputs[0]) or ())) == fact.axis:
        raise refuse(node, f"normalises over time. {ATTENTION}")
    return [fact]


def _scan_axis(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """CumSum: fine along any axis but time."""
    fact = _only(node, timing)
    axis = integers(node.inputs[1])
    rank = len(dims(node.inputs[0]) or ())
    if axis is None or _normal(axis[0], rank) == fact.axis:
        raise refuse(node, "accumulates over time outside the operators that carry a state.")
    return [fact]


def _layer_norm(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = _only(node, timing)
    axis = _normal(attribute(node, "axis", -1), len(dims(node.inputs[0]) or ()))
    if fact.axis >= axis:
        raise refuse(node, "normalises over time.")
    return [fact] * len(node.outputs)


def _channel_norm(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """Batch norm at inference is pointwise; group and instance norm average over time."""
    fact = _only(node, timing)
    if node.op_type != "BatchNormalization" or fact.axis == 1 or attribute(node, "training_mode"):
        raise refuse(node, "normalises over time.")
    return [fact]


def _top_k(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = _only(node, timing)
    if _normal(attribute(node, "axis", -1), len(dims(node.inputs[0]) or ())) == fact.axis:
        raise refuse(node, "ranks tokens against each other.")
    return [fact] * len(node.outputs)


def _tile(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact, repeats = _only(node, timing), integers(node.inputs[1])
    if repeats is None or repeats[fact.axis] != 1:
        raise refuse(node, "repeats entries along time.")
    return [fact]


# Operators that statefulize rewrites


def _attention(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    for name, value in zip(("query", "key", "value"), node.inputs, strict=False):
        fact = timing.of(value)
        rank = len(dims(value) or ()) if value is not None else 0
        if fact is None:
            raise refuse(
                node,
                f"takes its {name} from outside the sequence (cross attention), which has no step.",
            )
        if fact != Along(2) or rank != 4:
            raise refuse(node, f"has a {name} that is not [batch, heads, time, head size].")
    if not attribute(node, "is_causal", 0):
        raise refuse(
            node,
            "lets each token attend to later ones (is_causal is not set and there is no causal "
            "mask), so it cannot be stepped.",
        )
    timing.mixers.append(node)
    return [Along(2)]


def _linear_attention(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    for index, value in enumerate(node.inputs):
        if value is not None and index != 3 and timing.of(value) != Along(1):
            raise refuse(node, f"has an input {index} that is not [batch, time, ...].")
    timing.mixers.append(node)
    return [Along(1), None]


def _conv(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = _only(node, timing)
    weight = dims(node.inputs[1]) or ()
    spatial = fact.axis - 2
    if fact.axis == 0 and not (fact.lead or fact.trail):
        return [fact]
    if spatial < 0:
        raise refuse(node, "has time as its channels: it sums over time.")
    size = len(weight) - 2
    kernel = int(weight[fact.axis])
    reach = (kernel - 1) * list(attribute(node, "dilations") or [1] * size)[spatial]
    pads = list(attribute(node, "pads") or [0] * 2 * size)
    lead, trail = fact.lead + pads[spatial], fact.trail + pads[spatial + size]
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto not in ("NOTSET", b"NOTSET", "VALID", b"VALID"):
        raise refuse(node, f"pads itself ({auto}), which looks ahead in time.")
    if list(attribute(node, "strides") or [1] * size)[spatial] != 1:
        raise refuse(node, "skips tokens (its stride along time is not 1).")
    if lead < reach:
        raise refuse(
            node,
            f"looks {reach - lead} tokens ahead: a causal convolution of kernel {kernel} is padded "
            f"by {reach} on the left.",
        )
    if lead > reach or trail < 0:
        raise refuse(node, "shifts the sequence in time by more than its kernel.")
    if kernel > 1:
        if size > 1 or fact.flat:
            raise refuse(node, "is a convolution over time and space at once.")
        timing.mixers.append(node)
    return [Along(fact.axis, fact.flat, lead=0, trail=trail)]


def _rotary(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = timing.of(node.inputs[0])
    tables = [timing.of(value) for value in node.inputs[1:]]
    rank = len(dims(node.inputs[0]) or ())
    if fact != Along(2 if rank == 4 else 1) or None in tables:
        raise refuse(node, "rotates something that is not a sequence at its positions.")
    return [fact]


MOVES_ZEROS = frozenset({"Cast", "Conv", "Identity", "Pad", "Squeeze", "Transpose", "Unsqueeze"})
"""What may take a sequence that padding has made longer at its front."""

RULES: dict[str, Rule] = {
    "ArgMax": _reduce,
    "ArgMin": _reduce,
    "Attention": _attention,
    "BatchNormalization": _channel_norm,
    "Concat": _concat,
    "Conv": _conv,
    "CumSum": _scan_axis,
    "Einsum": _einsum,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _along_elements,
    "Gemm": _gemm,
    "GroupNormalization": _channel_norm,
    "Hardmax": _softmax,
    "InstanceNormalization": _channel_norm,
    "LayerNormalization": _layer_norm,
    "LinearAttention": _linear_attention,
    "LogSoftmax": _softmax,
    "LpNormalization": _softmax,
    "MatMul": _matmul,
    "Pad": _pad,
    "RMSNormalization": _layer_norm,
    "Reshape": _reshape,
    "RotaryEmbedding": _rotary,
    "ScatterElements": _along_elements,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    **dict.fromkeys(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare".split(),
        _reduce,
    ),
}
