"""The ONNX form of `piecewise_linear_rnn`: its schema, its node, its body as a Scan over tokens."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from intaglio import operators

from .op import own_node, own_schema

FLOAT = 1  # what ONNX calls float32
ZEROS = (
    "outer = Shape <start = 0, end = 1> (drive)",
    "shape = Concat <axis = 0> (outer, units)",
    "nothing = Constant <value = float {0.0}> ()",
    "start = Expand (nothing, shape)",
)

SCHEMA = own_schema(
    operators.PIECEWISE_LINEAR_RNN,
    "z <- A z + W phi(z) + h + drive, the last units rectified by phi, the first ones forced.",
)
_node = own_node(SCHEMA)


def translation(
    drive: Any,
    A: Any,
    W: Any,
    h: Any,
    force: Any = None,
    force_mask: Any = None,
    past_state: Any = None,
    *,
    num_relu: int,
) -> Any:
    """Emit the node for the torch op."""
    return _node(drive, A, W, h, force, force_mask, past_state, num_relu=num_relu)


def body(present: Collection[str], attributes: Mapping[str, Any]) -> str:
    """Write the recurrence as a Scan over tokens."""
    taken = {"drive_all": "float[batch, units] drive_t"}
    if "force" in present:
        taken["force_all"] = "float[batch, forced] force_t"
    if "force_mask" in present:
        taken["force_mask"] = "bool[batch] force_mask_t"
    axes = ", ".join("1" for _ in taken)
    state = "float[batch, units] state"
    scan = (
        f"present_state, scanned = Scan <num_scan_inputs = {len(taken)}, "
        f"scan_input_axes = [{axes}], scan_output_axes = [1], body = token "
        f"({state}, {', '.join(taken.values())}) => "
        "(float[batch, units] next, float[batch, 1, units] output_t) {"
    )
    floats = ["drive", *(["force"] if "force" in present else [])]
    return "\n".join(
        [
            "units = Shape (A)",
            "across = Constant <value_ints = [1]> ()",
            *_rectified(attributes["num_relu"]),
            *(f"{name}_all = Cast <to = {FLOAT}> ({name})" for name in floats),
            *(["start = Identity (past_state)"] if "past_state" in present else ZEROS),
            scan,
            *_token(present, attributes["num_relu"]),
            f"}}> (start, {', '.join(taken)})",
            "last = Constant <value_ints = [2]> ()",
            "states = Squeeze (scanned, last)",
            "output = CastLike (states, drive)",
        ]
    )


def _rectified(count: int) -> Iterator[str]:
    """Which units are rectified, bool [M]; nothing where none is."""
    if count:
        yield "first = Constant <value_int = 0> ()"
        yield "step = Constant <value_int = 1> ()"
        yield f"count = Constant <value_int = {count}> ()"
        yield "end = Squeeze (units)"
        yield "places = Range (first, end, step)"
        yield "linear = Sub (end, count)"
        yield "rectified = GreaterOrEqual (places, linear)"


def _token(present: Collection[str], num_relu: int) -> Iterator[str]:
    """One token: what is forced, what is rectified, what is mixed."""
    known = "state"
    if "force" in present:
        yield "forced_units = Shape <start = 1> (force_t)"
        yield "others = Slice (state, forced_units, units, across)"
        yield "taught = Concat <axis = 1> (force_t, others)"
        known = "taught"
    if "force_mask" in present:
        yield "chosen = Unsqueeze (force_mask_t, across)"
        yield "told = Where (chosen, taught, state)"
        known = "told"
    bent = known
    if num_relu:
        yield f"above = Relu ({known})"
        yield f"bent = Where (rectified, above, {known})"
        bent = "bent"
    yield f"mixed = Gemm <transB = 1> ({bent}, W, h)"
    yield f"kept = Mul (A, {known})"
    yield "moved = Add (kept, mixed)"
    yield "next = Add (moved, drive_t)"
    # Not Identity: once that is eliminated, ONNX Runtime fills one of two equal outputs with noise.
    yield "output_t = Unsqueeze (next, across)"
