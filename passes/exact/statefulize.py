"""A causal training-form graph becomes a step graph: T new tokens and the states before them.

Every node is either rewritten, proven to act on each token alone, or refused by name:

1. masks of attention are recognised by what they allow (`analysis.mask`) and dropped;
2. time is propagated through the graph (`analysis.time`), which refuses what cannot be stepped;
3. positions start at each row's `past_length` (`_positions`);
4. attention gains its cache, convolutions and linear attention their states (`_stateful_ops`).

One graph then serves prefill and step: any split of T gives the result of a single call.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.errors import PassError
from intaglio.passes.analysis.mask import Causal, recognise
from intaglio.passes.analysis.rows import check_rows
from intaglio.passes.analysis.time import LAST, Along, Timing, analyse, refuse
from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import dims, input_of, module_of, type_of
from intaglio.passes.own_ops import define
from intaglio.state import StateSpec

from . import _stateful_ops as stateful
from ._every_token import every_token
from ._positions import offset_positions
from ._stateful_scan import carried_by, scan
from ._step_values import StepValues


class Statefulize(Exact):
    """Carry the past in states, so that tokens can be given one by one or many at once."""

    kv: Literal["static", "grow"] = "static"
    last: bool = False

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Rewrite `model` and describe its states in `context.states`.

        Raises:
            PassError: some node looks ahead, mixes tokens without a state, or is not known.
        """
        if self.kv not in ("static", "grow"):
            raise PassError(f"statefulize: kv={self.kv!r} should be 'static' or 'grow'.")
        if context.states:
            raise PassError("statefulize: the graph carries states already.")
        graph = model.graph
        check_rows(graph)
        everywhere = [] if self.last else every_token(graph)
        windows = _drop_masks(model, context)
        common.RemoveUnusedNodesPass()(model)
        timing = analyse(graph)
        step = StepValues(graph)
        notes = offset_positions(model, timing, step, context)
        cuts = [
            node
            for node in graph
            if node.op_type == "Slice"
            and _trail(timing, node.inputs[0]) > _trail(timing, node.outputs[0])
        ]
        carried: list[stateful.Carried] = []
        for node in timing.mixers:
            carried += self._rewrite(node, step, windows)
        stateful.cut_trailing(graph, cuts, lambda value: _trail(timing, value))
        _connect(graph, carried, context)
        common.RemoveUnusedNodesPass()(model)
        common.TopologicalSortPass()(model)
        define(model)  # an operator of our own has another body where it starts from a state
        notes += [f"{spec.input} {list(spec.shape)} {spec.layout}" for spec in context.states]
        details = {"states": len(context.states), "max_context": context.max_context}
        advice = [*map(_every, everywhere), *_at_end(graph, timing)]
        return PassResult(changed=True, notes=notes, details=details, advice=advice)

    def _rewrite(
        self, node: ir.Node, step: StepValues, windows: dict[ir.Node, int | None]
    ) -> list[stateful.Carried]:
        if node.op_type == "Attention":
            grow = self.kv == "grow"
            return stateful.attention(node, step, window=windows.get(node), grow=grow)
        if node.op_type == "Scan":
            return [scan(node, index) for index in carried_by(node)]
        return stateful.REWRITES.get(type_of(node), stateful.convolution)(node)


def _every(name: str) -> str:
    return (
        f"The output {name!r} is there for every token: what the model computes from its last "
        "token is computed from each. To return the last one alone: --last."
    )


def _at_end(graph: ir.Graph, timing: Timing) -> Iterator[str]:
    for value in graph.outputs:
        if timing.of(value) is LAST:
            yield (
                f"The output {value.name!r} has no time axis: each step returns it as it is after "
                "the last of its tokens."
            )


def _trail(timing: Timing, value: ir.Value | None) -> int:
    fact = timing.of(value)
    return fact.trail if isinstance(fact, Along) else 0


def _drop_masks(model: ir.Model, context: Context) -> dict[ir.Node, int | None]:
    """Turn causal masks into `is_causal`; return the window of each attention that has one."""
    windows: dict[ir.Node, int | None] = {}
    known: dict[ir.Value, Causal | None] = {}
    for node in model.graph:
        mask = input_of(node, 3) if node.op_type == "Attention" and not node.domain else None
        if mask is None:
            continue
        if any(value is not None for value in node.inputs[4:]):
            raise refuse(node, "has a cache already.")
        if mask not in known:
            known[mask] = recognise(model, mask)
        found = known[mask]
        if found is None:
            raise refuse(
                node,
                f"has an attention mask or bias of shape {list(dims(mask) or ())} that is neither "
                "causal nor a sliding window (a padding mask, ALiBi or a bidirectional mask, "
                "perhaps). Compute a causal mask inside the model, or use is_causal=True.",
            )
        node.replace_input_with(3, None)
        node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
        windows[node] = found.window
        if found.limit is not None:
            context.limit_context(found.limit)
    return windows


def _connect(graph: ir.Graph, carried: Sequence[stateful.Carried], context: Context) -> None:
    """Name the states, make them inputs and outputs of the graph, and describe them."""
    modules = [module_of(state.node) for state in carried]
    layers = _layers(modules)
    calls: dict[tuple[str, str], list[ir.Node]] = defaultdict(list)
    groups: dict[tuple[int, str], list[str]] = defaultdict(list)
    for state, module in zip(carried, modules, strict=True):
        nodes = calls[module, state.op]
        if state.node not in nodes:
            nodes.append(state.node)
        groups[layers[module], state.port].append(f"{module}#{nodes.index(state.node)}")
    for state, module in zip(carried, modules, strict=True):
        layer = layers[module]
        call = calls[module, state.op].index(state.node)
        tail = _tail(groups[layer, state.port], f"{module}#{call}")
        stem = f"{layer}.{state.port}{tail}"
        family = "past_key_values" if state.op == "attention" else "past"
        state.past.name, state.present.name = f"{family}.{stem}", f"present.{stem}"
        graph.inputs.append(state.past)
        graph.outputs.append(state.present)
        assert state.past.dtype is not None
        context.states.append(
            StateSpec(
                input=state.past.name,
                output=state.present.name,
                dtype=str(state.past.dtype.numpy()),
                shape=dims(state.past) or (),
                layout=state.layout,
                axis=state.axis,
                op=state.op,
                port=state.port,
                module=module,
                layer=layer,
                call=call,
                window=state.window,
                initial=state.initial,
            )
        )


def _layers(modules: Sequence[str]) -> dict[str, int]:
    """Decoder layer of each module: the first number in its path, else its order."""
    numbers = {
        module: next((int(part) for part in module.split(".") if part.isdigit()), None)
        for module in modules
    }
    if any(number is None for number in numbers.values()):
        return {module: index for index, module in enumerate(dict.fromkeys(modules))}
    return {module: number for module, number in numbers.items() if number is not None}


def _tail(paths: Sequence[str], own: str) -> str:
    """What tells `own` from the other owners of a port in one layer: nothing, or a path's end."""
    others = [path for path in paths if path != own]
    if not others:
        return ""
    path = own.partition("#")[0]
    parts = path.split(".")
    for length in range(1, len(parts) + 1 if path else 1):
        end = ".".join(parts[-length:])
        if not any(f".{path.partition('#')[0]}".endswith(f".{end}") for path in others):
            return f".{end}"
    return f".{own.replace('#', '.').lstrip('.')}"
