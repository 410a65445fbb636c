"""The ONNX form of `diagonal_ssm`: its schema, its node, its body as a Scan over tokens."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from intaglio import operators

from .op import own_node, own_schema

FLOAT = 1  # what ONNX calls float32
ZEROS = (
    "outer = Shape <start = 0, end = 1> (input)",
    "inner = Shape (A)",
    "shape = Concat <axis = 0> (outer, inner)",
    "zero = Constant <value = float {0.0}> ()",
    "start = Expand (zero, shape)",
)

SCHEMA = own_schema(
    operators.DIAGONAL_SSM,
    "h <- exp(delta A) h + delta B u, y = sum C h, for states that do not mix; carried along time.",
)
_node = own_node(SCHEMA)


def translation(
    input: Any,  # noqa: A002
    A: Any,
    B: Any,
    C: Any,
    delta: Any = None,
    past_state: Any = None,
    *,
    discretization: str = "mamba",
    lti: bool = False,
) -> Any:
    """Emit the node for the torch op."""
    return _node(input, A, B, C, delta, past_state, discretization=discretization, lti=int(lti))


def body(present: Collection[str], attributes: Mapping[str, Any]) -> str:
    """Write the recurrence as a Scan over tokens."""
    tokens = ["input"] + ["delta"] * ("delta" in present) + ["B", "C"] * (not attributes["lti"])
    taken = ", ".join(f"float[batch, width_of_{name}] {name}_t" for name in tokens)
    axes = ", ".join("1" for _ in tokens)
    state = "float[batch, channels, states]"
    scan = (
        f"present_state, scanned = Scan <num_scan_inputs = {len(tokens)}, "
        f"scan_input_axes = [{axes}], scan_output_axes = [1], "
        f"body = token ({state} state, {taken}) => ({state} next, float[batch, width] output_t) {{"
    )
    return "\n".join(
        [
            "last = Constant <value_ints = [-1]> ()",
            "middle = Constant <value_ints = [1]> ()",
            *(f"{name}_all = Cast <to = {FLOAT}> ({name})" for name in sorted({*tokens, "B", "C"})),
            *(["start = Identity (past_state)"] if "past_state" in present else ZEROS),
            scan,
            *_token(present, attributes),
            f"}}> (start, {', '.join(f'{name}_all' for name in tokens)})",
            "output = CastLike (scanned, input)",
        ]
    )


def _token(present: Collection[str], attributes: Mapping[str, Any]) -> Iterator[str]:
    """One token: rate, what is kept, what is added, what is read."""
    if "delta" in present:
        yield "dt = Unsqueeze (delta_t, last)"
        yield "rate = Mul (dt, A)"
    else:
        yield "rate = Identity (A)"
    yield "keep = Exp (rate)"
    yield "kept = Mul (keep, state)"
    scaled = attributes["discretization"] == "mamba" and "delta" in present
    yield f"drive = {'Mul (delta_t, input_t)' if scaled else 'Identity (input_t)'}"
    yield "driven = Unsqueeze (drive, last)"
    for row, name in (("write", "B"), ("read", "C")):
        whole = f"Identity ({name}_all)"
        yield f"{row} = {whole if attributes['lti'] else f'Unsqueeze ({name}_t, middle)'}"
    yield "written = Mul (driven, write)"
    yield "next = Add (kept, written)"
    yield "weighed = Mul (next, read)"
    yield "output_t = ReduceSum <keepdims = 0> (weighed, last)"
