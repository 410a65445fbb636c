"""What a network does to one input is an affine map: graphs that record it and replay it.

y(x1) = W x1 + r, where W and r are what the network decided for x0, and y(x0) is its own output.
Three graphs are put beside the main one, which stays as it is: `record` takes x0 and gives the
outputs and all decisions; `replay` takes any number of inputs x1 and the decisions, and gives the
map of each; `transpose` takes weights of the outputs and gives the rows W^T v.

The identities are checked on random inputs before anything is written: replay of x0 is the output,
and v . (W u) = (W^T v) . u.

Source: Navarrete Michelini et al. 2019, "A Tour of Convolutional Networks Guided by Linear
Interpreters", arXiv:1908.05168.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes import evaluate
from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import dims

from ._linear_adjoint import ROW, WEIGHTS, transposed
from ._linear_streams import split

RECORD, REPLAY, TRANSPOSE = "record", "replay", "transpose"
AGREES = 1e-3  # of the largest entry; a form that is wrong is wrong by far more than rounding
MOST = 1e8  # times as large as numbers of a normal distribution

Array = npt.NDArray[Any]


class LinearInterpreter(Exact):
    """Put graphs beside the main one that record and replay it as an affine map of its input."""

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Build the graphs, check the identities, and leave `model` as it is."""
        if context.own or context.states:
            raise PassError(
                "linear-interpreter: the model carries states; a map is taken of models of whole "
                "inputs, as of pictures. Export it with --whole."
            )
        record, replay = split(model)
        made = {RECORD: record, REPLAY: replay}
        notes = []
        try:
            made[TRANSPOSE] = transposed(replay)
        except PassError as error:
            notes.append(f"no graph gives rows of the map: {error}")
        details = _checked(model, made, context)
        context.beside.update(made)
        return PassResult(changed=False, notes=notes, details=details, advice=notes)


def _checked(model: ir.Model, made: dict[str, ir.Model], context: Context) -> dict[str, float]:
    """How far the identities are from holding, relative to the largest entry.

    Raises:
        PassError: if one does not hold.
    """
    source = model.graph.inputs[0]
    shape = [int(dim) for dim in (dims(source) or ())[1:]]
    rng = np.random.default_rng(0)
    drawn = context.drawn({str((dims(source) or ("",))[0]): 1}, 0).get(str(source.name))
    x = rng.standard_normal((1, *shape), np.float32) if drawn is None else drawn[:1]
    feed = {str(source.name): x}
    recorded = evaluate.run(made[RECORD], feed)
    names = [str(value.name) for value in made[REPLAY].graph.inputs][1:]
    decisions = {name: recorded[name] for name in names}
    output = str(model.graph.outputs[0].name)
    wanted = evaluate.run(model, feed)[output]
    noise = rng.standard_normal((2, *shape), np.float32)

    def replayed_with(noise: Array) -> Array:
        both = np.concatenate((x, np.zeros_like(x), noise))
        return evaluate.run(made[REPLAY], {str(source.name): both, **decisions})[output]

    replayed = replayed_with(noise)
    if TRANSPOSE in made:
        noise = noise * _beside_the_bias(replayed)
        replayed = replayed_with(noise)
    found = {"replay": _apart(replayed[:1], wanted), "record": _apart(recorded[output], wanted)}
    moved = replayed[2:] - replayed[1:2]
    if TRANSPOSE in made:
        weights = rng.standard_normal(moved.shape, np.float32)
        taken = {str(value.name) for value in made[TRANSPOSE].graph.inputs}
        feeds = {name: x for name, x in decisions.items() if name in taken}
        for value in model.graph.outputs:
            name = str(value.name)
            shape_of = (2, *map(int, (dims(value) or ())[1:]))
            given = weights if name == output else np.zeros(shape_of, np.float32)
            feeds[WEIGHTS.format(name)] = given
        rows = evaluate.run(made[TRANSPOSE], feeds)[ROW]
        axes = tuple(range(1, rows.ndim)), tuple(range(1, moved.ndim))
        left, right = (rows * noise).sum(axes[0]), (weights * moved).sum(axes[1])
        scale = np.sqrt((weights**2).sum(axes[1]) * (moved**2).sum(axes[1])).max()
        found["transpose"] = float(np.abs(left - right).max() / max(scale, 1e-30))
    for name, error in found.items():
        if not error <= AGREES:
            raise PassError(
                f"linear-interpreter: the graph {name!r} does not give what it should (off by "
                f"{error:.1e} of the largest entry); an operator of the model is taken wrongly."
            )
    return found


def _beside_the_bias(replayed: Array) -> np.float32:
    """How much larger inputs have to be for what they add to be as large as the bias term.

    Of a deep network W u may be so small beside r that the sum rounds it away.
    """
    bias = float(np.abs(replayed[1]).max(initial=0))
    moved = float(np.abs(replayed[2:] - replayed[1]).max(initial=0))
    return np.float32(min(max(bias / moved, 1.0), MOST) if moved else MOST)


def _apart(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max(initial=0) / max(float(np.abs(b).max(initial=0)), 1e-30))
