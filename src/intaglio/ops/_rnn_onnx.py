"""The ONNX form of `rnn`: its schema, its node, its body as LSTM, GRU or RNN of the standard."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from intaglio import operators

from .op import own_node, own_schema

GATES = {
    "LSTM": (0, 3, 1, 2),  # the standard's input, output, forget, cell among i, f, g, o
    "GRU": (1, 0, 2),  # its update, reset, hidden among r, z, n
    "RNN_TANH": (0,),
    "RNN_RELU": (0,),
}
"""Where PyTorch has each gate of the standard, by mode."""
OPTIONS = {
    "GRU": ", linear_before_reset = 1",
    "RNN_TANH": ', activations = ["Tanh"]',
    "RNN_RELU": ', activations = ["Relu"]',
}

SCHEMA = own_schema(
    operators.RNN,
    "One layer of an LSTM, a GRU or a simple RNN as PyTorch defines it, from a state to a state.",
)
_node = own_node(SCHEMA)


def translation(
    input: Any,  # noqa: A002
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    past_state: Any = None,
    *,
    mode: str,
) -> Any:
    """Emit the node for the torch op."""
    given = (input, weight_ih, weight_hh, bias_ih, bias_hh, past_state)
    return _node(*given, mode=mode, hidden_size=int(weight_hh.shape[1]))


def body(present: Collection[str], attributes: Mapping[str, Any]) -> str:
    """Write the layer as the standard's, which has time first and its gates in another order."""
    mode = attributes["mode"]
    mode = mode.decode() if isinstance(mode, bytes) else mode
    cells = operators.RNN.kinds["mode"][mode]["vectors"]
    starts, ends = (f"start_{i}" for i in range(cells)), [f"end_{i}" for i in range(cells)]
    bias = "B" if "bias_ih" in present else ""
    given = ["x", "W", "R", bias, "", *(starts if "past_state" in present else ())]
    name, option = mode.partition("_")[0], OPTIONS.get(mode, "")
    layer = f"{name} <hidden_size = {attributes['hidden_size']}{option}> ({', '.join(given)})"
    return "\n".join(
        [
            "first = Constant <value_ints = [0]> ()",
            "second = Constant <value_ints = [1]> ()",
            "x = Transpose <perm = [1, 0, 2]> (input)",
            *_ordered("weight_ih", mode),
            *_ordered("weight_hh", mode),
            "W = Unsqueeze (weight_ih_ordered, first)",
            "R = Unsqueeze (weight_hh_ordered, first)",
            *(_biases(mode) if bias else ()),
            *(_start(cells) if "past_state" in present else ()),
            f"y, {', '.join(ends)} = {layer}",
            "steps = Squeeze (y, second)",
            "output = Transpose <perm = [1, 0, 2]> (steps)",
            f"ends = Concat <axis = 0> ({', '.join(ends)})",
            "present_state = Transpose <perm = [1, 0, 2]> (ends)",
        ]
    )


def _ordered(name: str, mode: str) -> Iterator[str]:
    order = GATES[mode]
    parts = [f"{name}_{index}" for index in range(len(order))]
    if len(order) == 1:
        yield f"{name}_ordered = Identity ({name})"
        return
    yield f"{', '.join(parts)} = Split <axis = 0, num_outputs = {len(order)}> ({name})"
    yield f"{name}_ordered = Concat <axis = 0> ({', '.join(parts[index] for index in order)})"


def _biases(mode: str) -> Iterator[str]:
    yield from _ordered("bias_ih", mode)
    yield from _ordered("bias_hh", mode)
    yield "biases = Concat <axis = 0> (bias_ih_ordered, bias_hh_ordered)"
    yield "B = Unsqueeze (biases, first)"


def _start(cells: int) -> Iterator[str]:
    yield "states = Transpose <perm = [1, 0, 2]> (past_state)"
    if cells == 1:
        yield "start_0 = Identity (states)"
    else:
        yield f"start_0, start_1 = Split <axis = 0, num_outputs = {cells}> (states)"
