"""States that a source carries itself, as a cell does, become the states of its step graph.

A graph ``(x, h) -> (y, h')`` is a step already: its inputs and outputs are only told apart.  What
makes it one is held to the graph: a state leaves as it came, in dtype and shape; rows do not meet;
and where there is a time axis, tokens at once give what they give in parts.  That rows do not meet
is proven node by node (`analysis.rows`), and measured where a node is not known, as of a graph that
another exporter wrote; parts are measured, from the initial states on.

An initial value that is a number is the session's work.  One that differs within a row is a weight
of the graph, which takes it in place of the state where a row has consumed nothing:
``Where(past_length == 0, initial, h)``.
"""

import numpy as np
import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.analysis.rows import check_rows as prove_rows
from intaglio.passes.base import Context, Exact, OwnState, PassResult
from intaglio.passes.graph import dims
from intaglio.state import BATCH, OWN, TIME, Layout, StateSpec

from ._initial_values import start_at
from ._own_steps import check_parts, check_rows

TYPED = "--state INPUT=OUTPUT"


class CarryStates(Exact):
    """Carry the states that the source takes and gives back itself."""

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Describe the states of `model` in `context.states`.

        Raises:
            PassError: a state does not come back as it went in, rows meet, or parts of a sequence
                give something else than all of it.
        """
        if context.states or not context.own:
            return PassResult(changed=False)
        graph = model.graph
        known = {str(value.name): value for value in graph.inputs}
        if all(BATCH not in (dims(value) or ()) for value in graph.inputs):
            context.batch = 1
        _keep_outputs(graph, context)
        for index, own in enumerate(context.own):
            context.states.append(_spec(graph, known[own.input], own, index))
        for own, spec in zip(context.own, context.states, strict=True):
            if isinstance(own.initial, np.ndarray):
                start_at(graph, known[own.input], spec, own.initial)
        rows = _show_rows(model, context)
        check_parts(model, context)
        notes = [f"{s.input} {list(s.shape)} becomes {s.output}" for s in context.states]
        return PassResult(
            changed=True, notes=notes, details={"states": len(context.states), "rows": rows}
        )


def _show_rows(model: ir.Model, context: Context) -> str:
    """Show that rows do not meet: node by node, or where a node is not known, on data."""
    try:
        prove_rows(model.graph)
    except PassError:
        check_rows(model, context)
        return "measured"
    return "proven"


def _keep_outputs(graph: ir.Graph, context: Context) -> None:
    """Where every output is a state, as of `torch.nn.GRUCell`, each is also what a step returns."""
    outputs = {own.output for own in context.own}
    if any(value.name not in outputs for value in graph.outputs):
        return
    last, renamed = next(reversed(graph)), []
    for own in context.own:
        value = next(v for v in graph.outputs if v.name == own.output)
        name = f"{own.input}.next"
        node = ir.node("Identity", [value], name=name)
        graph.insert_after(last, node)
        node.outputs[0].name, node.outputs[0].type = name, value.type
        node.outputs[0].shape = value.shape
        graph.outputs.append(node.outputs[0])
        renamed.append(OwnState(input=own.input, output=name, initial=own.initial))
    context.own = renamed


def _spec(graph: ir.Graph, past: ir.Value, own: OwnState, index: int) -> StateSpec:
    present = next(value for value in graph.outputs if value.name == own.output)
    shape, after = dims(past) or (), dims(present) or ()
    words = f"the state {own.input!r} {list(shape)}"
    if past.dtype != present.dtype or past.dtype is None:
        raise PassError(
            f"{words} is {_dtype(past)}, but {own.output!r} is {_dtype(present)}: the next step "
            f"cannot take it. Cast it in the model, or name another output: {TYPED}."
        )
    if shape != after:
        raise PassError(
            f"{words} comes back as {own.output!r} {list(after)}, another shape, so that the next "
            f"step cannot take it. Name the output that it becomes: {TYPED}; where its "
            f"axes are others, name them: --axes {own.input}:..."
        )
    if TIME in shape or shape.count(BATCH) > 1:
        raise PassError(
            f"{words} has an axis of {TIME if TIME in shape else 'two of ' + BATCH}: a state has "
            f"the same size after every step. Name its axes: --axes {own.input}:..."
        )
    number = not isinstance(own.initial, np.ndarray)
    return StateSpec(
        input=own.input,
        output=own.output,
        dtype=past.dtype.numpy().name,
        shape=shape,
        layout=Layout.RECURRENT,
        axis=None,
        op=OWN,
        port="state",
        module="",
        layer=0,
        call=index,
        initial=float(own.initial) if number else 0.0,
    )


def _dtype(value: ir.Value) -> str:
    return "of unknown type" if value.dtype is None else value.dtype.numpy().name
