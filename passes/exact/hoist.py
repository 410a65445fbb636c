"""What conditions alone decide is computed once, by a graph of its own: `prepare`.

A *condition* is an input without time axis, which holds for a whole sequence: an encoder's input,
a label, a picture.  Whatever is computed from conditions and weights alone, keys and values of
cross attention above all (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3), is the same for
each step.  The step graph is cut in two along a *frontier* of values: `prepare` computes these from
the conditions, and the step graph takes them as states that no step changes.

Every node that depends on conditions alone lies behind the frontier, but for what `_frontier`
keeps in the step because it is cheap and its result is larger than what it is made of.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.errors import PassError
from intaglio.passes import evaluate
from intaglio.passes.analysis.origin import Origin, Origins, sizes
from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import Dim, Emitter, describe, dims, module_of, replace_uses, taken
from intaglio.passes.own_ops import define
from intaglio.state import TIME, Layout, StateSpec

from ._frontier import frontier, keeps_rows

INT64 = ir.DataType.INT64
PORTS = {("Attention", 1): "key", ("Attention", 2): "value", ("Attention", 3): "mask"}
VIEWS = frozenset({"Expand", "Identity", "Reshape", "Squeeze", "Unsqueeze"})

Places = Mapping[Dim, tuple[ir.Value, int]]


class Hoist(Exact):
    """Compute what depends on conditions alone once, in a graph of its own."""

    for_tokens = True

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Cut `model`; what comes before the steps goes to `context.prepare`.

        Raises:
            PassError: a result that depends on conditions does not keep rows apart, or none does.
        """
        graph = model.graph
        origins = Origins(graph, {spec.input for spec in context.states})
        timed = any(TIME in (dims(value) or ()) for value in graph.inputs)
        if not origins.conditions or not timed:
            return PassResult(changed=False)
        stepped = [v for v in graph.inputs if origins.of(v) is Origin.STEP]
        cut = frontier(graph, origins, {dim for v in stepped for dim in dims(v) or ()})
        if not cut:
            names = ", ".join(repr(value.name) for value in origins.conditions)
            raise PassError(
                f"no result depends on {names}, given once for a sequence: there is nothing to "
                "prepare. Leave what changes nothing out of forward."
            )
        for value in cut:
            _check_rows(value)
        specs = _describe(cut, origins)
        context.prepare = _prepare(model, cut, origins, [spec.input for spec in specs])
        _step(model, cut, origins, specs)
        context.states += specs
        notes = [f"{spec.input} {list(spec.shape)}" for spec in specs]
        return PassResult(changed=True, notes=notes, details={"prepared": len(specs)})


def _check_rows(value: ir.Value) -> None:
    node = value.producer()
    if node is not None and not keeps_rows(value):
        raise PassError(
            f"{describe(node)} gives {list(dims(value) or ())}, computed from conditions alone, in "
            "which rows have no axis of their own. Keep the batch as an axis by itself there."
        )


def _prepare(
    model: ir.Model, cut: Sequence[ir.Value], origins: Origins, names: Sequence[str]
) -> ir.Model:
    """The graph that computes the values of `cut`, called `names`, from the conditions."""
    behind = [value for node in model.graph for value in taken(node)]
    foreign = [value for value in behind if origins.of(value) is Origin.STEP]
    prepare = evaluate.part(model, cut, foreign)
    graph = prepare.graph
    known = {value.name: value for value in graph.inputs}
    strangers = [value for value in graph.inputs if value.name not in _named(origins.conditions)]
    for value in origins.conditions:
        if value.name not in known:
            known[value.name] = ir.Value(name=value.name, type=value.type, shape=value.shape)
    graph.inputs[:] = [known[value.name] for value in origins.conditions]
    _measure_anew(graph, strangers, _places(graph.inputs))
    for index, (value, name) in enumerate(zip(list(graph.outputs), names, strict=True)):
        node = ir.node("Identity", [value], name=f"prepared_{index}")
        node.outputs[0].name, node.outputs[0].type = name, value.type
        node.outputs[0].shape = value.shape
        graph.append(node)
        graph.outputs[index] = node.outputs[0]
    common.RemoveUnusedNodesPass()(prepare)
    common.TopologicalSortPass()(prepare)
    define(prepare)
    return prepare


def _step(
    model: ir.Model, cut: Sequence[ir.Value], origins: Origins, specs: Sequence[StateSpec]
) -> None:
    """Let the step graph take the values of `cut` as inputs, and no condition."""
    graph = model.graph
    for value, spec in zip(cut, specs, strict=True):
        given = ir.Value(name=spec.input, type=value.type, shape=value.shape)
        graph.inputs.append(given)
        ir.convenience.replace_all_uses_with(value, given)
    for value in origins.conditions:
        graph.inputs.remove(value)
    common.RemoveUnusedNodesPass()(model)
    strangers = [v for n in graph for v in taken(n) if origins.of(v) is Origin.GIVEN]
    _measure_anew(graph, strangers, _places(graph.inputs))
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)


def _named(values: Sequence[ir.Value]) -> set[str | None]:
    return {value.name for value in values}


def _places(inputs: Sequence[ir.Value]) -> Places:
    """Where each free size can be read: an input and its axis."""
    found: dict[Dim, tuple[ir.Value, int]] = {}
    for value in inputs:
        for axis, dim in enumerate(dims(value) or ()):
            found.setdefault(dim, (value, axis))
    return found


def _measure_anew(graph: ir.Graph, strangers: Sequence[ir.Value], places: Places) -> None:
    """Take each size of a value that is not in `graph` any more from an input that has it."""
    for value in set(strangers):
        for node, _ in list(value.uses()):
            if node.op_type != "Shape" or node.graph is not graph:
                continue
            emit, parts = Emitter(node), []
            for dim in sizes(node) or ():
                if isinstance(dim, int):
                    parts.append(emit.constant([dim]))
                    continue
                source, axis = places[dim]
                parts.append(emit("Shape", [source], INT64, [1], start=axis, end=axis + 1))
            replace_uses(
                node.outputs[0],
                parts[0] if len(parts) == 1 else emit("Concat", parts, INT64, [len(parts)], axis=0),
            )


def _describe(cut: Sequence[ir.Value], origins: Origins) -> list[StateSpec]:
    """The states of the values `cut`, named after those who take them."""
    found: list[StateSpec] = []
    counts: Counter[str] = Counter()
    for value in cut:
        users = _users(value, origins)
        ports = {PORTS.get((node.op_type, index), "value") for node, index in users}
        module = _common([module_of(node) for node, _ in users])
        port = ports.pop() if len(ports) == 1 else "value"
        stem = ".".join(part for part in ("prepared", module, port) if part)
        counts[stem] += 1
        name = stem if counts[stem] == 1 else f"{stem}.{counts[stem]}"
        assert value.dtype is not None
        found.append(
            StateSpec(
                input=name,
                output="",
                dtype=str(value.dtype.numpy()),
                shape=dims(value) or (),
                layout=Layout.PREPARED,
                axis=None,
                op="hoist",
                port=port,
                module=module,
                layer=next((int(p) for p in module.split(".") if p.isdigit()), 0),
                call=counts[stem] - 1,
            )
        )
    return found


def _users(value: ir.Value, origins: Origins) -> list[tuple[ir.Node, int]]:
    """Who takes `value` in the step, views of it looked through."""
    found = []
    for node, index in value.uses():
        if node.op_type in VIEWS and index == 0 and not node.domain:
            found += _users(node.outputs[0], origins)
        elif origins.of(node.outputs[0]) is Origin.STEP:
            found.append((node, index))
    return found


def _common(paths: Sequence[str]) -> str:
    """The path of the module that holds all of `paths`."""
    levels = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))
