"""A causal training-form graph becomes a step graph: T new tokens and the states before them.

Every node is either rewritten, proven to act on each token alone, or refused by name:

1. where tokens meet in attention (`analysis.meetings`), masks are shown to forbid later tokens;
   those that do no more, or keep a window, become `is_causal` and a shorter cache;
2. time is propagated through the graph (`analysis.time`), which refuses what cannot be stepped;
3. positions start at each row's `past_length` (`_positions`);
4. attention gains its cache, unless it stays within blocks that calls take whole; convolutions
   and linear attention gain their states (`_stateful_ops`);
   other masks, and attention written out, are computed for the positions at hand (`_pairs`).

One graph then serves prefill and step: any split of T gives the result of a single call.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.errors import PassError
from intaglio.passes.analysis.active_keys import queue
from intaglio.passes.analysis.blocks import Blocks
from intaglio.passes.analysis.known_shapes import complete_shapes
from intaglio.passes.analysis.mask import Causal
from intaglio.passes.analysis.meetings import MASK, Meeting, Meetings, meetings
from intaglio.passes.analysis.rows import check_rows
from intaglio.passes.analysis.time import LAST, Timing, analyse
from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import dims, module_of, replace_uses, type_of
from intaglio.passes.own_ops import define
from intaglio.state import StateSpec, entries_of

from . import _stateful_ops as stateful
from ._every_token import every_token
from ._padding import sequences, without_padding
from ._pairs import Pairs
from ._positions import limit_by_tables, offset_positions
from ._queues import Queued
from ._stateful_scan import carried_by, scan
from ._stateful_windows import window
from ._step_values import StepValues
from ._windows import attributes_to_masks


class Statefulize(Exact):
    """Carry the past in states, so that tokens can be given one by one or many at once."""

    for_tokens = True

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
        everywhere = [] if self.last else every_token(graph)
        common.RemoveUnusedNodesPass()(model)
        complete_shapes(graph)
        attributes_to_masks(graph)
        met = meetings(graph)
        for found in met.found.values():
            _limit(found, context)
        timing = analyse(graph, met)
        check_rows(graph)
        moving = sequences(model, timing)
        without_padding(graph, timing)
        limit_by_tables(model, timing, context)
        step = StepValues(graph)
        carried: list[stateful.Carried] = []
        computed = _compute(met, timing.mixers, step, grow=self.kv == "grow")
        for node in timing.mixers:
            if node in moving:
                states = window(node, moving[node])
            else:
                states = self._rewrite(node, step, met.found.get(node), computed)
            carried += map(stateful.rows_apart, states)
        carried += computed.carried
        notes = offset_positions(model, timing, step, context)
        _connect(graph, carried, context)
        common.RemoveUnusedNodesPass()(model)
        common.TopologicalSortPass()(model)
        define(model)  # an operator of our own has another body where it starts from a state
        notes += [f"{spec.input} {list(spec.shape)} {spec.layout}" for spec in context.states]
        details = {"states": len(context.states), "max_context": context.max_context}
        advice = [*map(_every, everywhere), *_at_end(graph, timing, context)]
        return PassResult(changed=True, notes=notes, details=details, advice=advice)

    def _rewrite(
        self, node: ir.Node, step: StepValues, found: Meeting | None, computed: "_Computed"
    ) -> list[stateful.Carried]:
        if node in computed.results:
            replace_uses(node.outputs[0], computed.results[node])
            return []
        if found and isinstance(found.mask, Blocks) and found.mask.alone:
            stateful.within_blocks(node, step, found.mask.ends)
            return []
        if node.op_type == "Attention":
            window = found.mask.window if found and isinstance(found.mask, Causal) else None
            mask, pasts = computed.masks.get(node, (None, ()))
            step = step.at(entries_of((dims(node.inputs[0]) or ())[2]) or 1)
            grow = self.kv == "grow"
            return stateful.attention(node, step, window=window, grow=grow, mask=mask, pasts=pasts)
        if node.op_type == "Scan":
            return [scan(node, index) for index in carried_by(node)]
        return stateful.REWRITES[type_of(node)](node)


def _every(name: str) -> str:
    return (
        f"The output {name!r} is there for every token: what the model computes from its last "
        "token is computed from each. To return the last one alone: --last."
    )


def _at_end(graph: ir.Graph, timing: Timing, context: Context) -> Iterator[str]:
    states = {spec.output for spec in context.states}
    for value in graph.outputs:
        if timing.of(value) is LAST and value.name not in states:
            yield (
                f"The output {value.name!r} has no time axis: each step returns it as it is after "
                "the last of its tokens."
            )


@dataclass
class _Computed:
    """What is computed for the positions of a step: masks with their caches, and results."""

    masks: dict[ir.Node, tuple[ir.Value, list[ir.Value]]] = field(default_factory=dict)
    results: dict[ir.Node, ir.Value] = field(default_factory=dict)
    carried: list[stateful.Carried] = field(default_factory=list)


def _entries(found: Meeting) -> int:
    """How many entries a token has of what tokens meet in."""
    return entries_of((dims(found.node.outputs[0]) or ("?",) * 4)[found.axis]) or 1


def _compute(met: Meetings, nodes: Sequence[ir.Node], step: StepValues, *, grow: bool) -> _Computed:
    """Emit all values of pairs, before what they are computed from is rewritten in turn."""
    result, at_rate = _Computed(), dict[int, Pairs]()
    for found in (met.found[node] for node in nodes if node in met.found):
        each = _entries(found)
        pairs = at_rate.setdefault(each, Pairs(step.at(each), grow=grow))
        held = queue(found.terms[0]) if found.terms and each == 1 else None
        if held is not None:
            queued = Queued(step, held)
            result.results[found.node] = queued.made(found)
            result.carried += queued.after()
        elif found.node.op_type != "Attention":
            result.results[found.node] = pairs.result(found.node, found.terms[0])
        elif found.terms:
            pasts = stateful.past_caches(found.node, window=None, grow=grow, each=each)
            mask = pairs.mask(found.terms[0], found.node, pasts[0])
            result.masks[found.node] = mask, pasts
    result.carried += [state for pairs in at_rate.values() for state in pairs.carried]
    return result


def _limit(found: Meeting, context: Context) -> None:
    """A table of a mask ends the context; a mask that is causal and no more is not needed."""
    if found.limit is not None:
        context.limit_context(found.limit // _entries(found))
    if isinstance(found.mask, Blocks):
        context.limit_ends(found.mask.ends)
    if isinstance(found.mask, Causal):
        found.node.replace_input_with(MASK, None)
        found.node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)


def _connect(graph: ir.Graph, carried: Sequence[stateful.Carried], context: Context) -> None:
    """Name the states, make them inputs and outputs of the graph, and describe them."""
    modules = [module_of(state.node) for state in carried]
    layers = _layers(modules)
    calls: dict[tuple[str, str], list[ir.Node]] = defaultdict(list)
    ports: dict[tuple[str, str], list[ir.Node]] = defaultdict(list)
    groups: dict[tuple[int, str], list[str]] = defaultdict(list)
    for state, module in zip(carried, modules, strict=True):
        for nodes in (calls[module, state.op], ports[module, state.port]):
            if state.node not in nodes:
                nodes.append(state.node)
        place = ports[module, state.port].index(state.node)
        groups[layers[module], state.port].append(f"{module}#{place}")
    for state, module in zip(carried, modules, strict=True):
        layer = layers[module]
        call = calls[module, state.op].index(state.node)
        place = ports[module, state.port].index(state.node)
        tail = _tail(groups[layer, state.port], f"{module}#{place}")
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
