"""What depends on weights alone is computed once, in float64, before the program is converted.

An inverse, a matrix exponential, an eigendecomposition or a small network over coordinates needs
no ONNX operator where no input flows into it: its value is a weight, named after its module.
What only views a weight, or maps one weight entry by entry, stays in the graph under the names
of the parameters: passes, quantization and reports go by these.
"""

import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from intaglio.errors import TraceError
from intaglio.quiet import quiet, summary

from .modules import named, path_of
from .mutations import DETACH, origin, writes

AGREES = 1e-3  # of the largest entry: where float64 gives something else, types are at work
FOLDED = "folded"  # in place of the path, of what the whole model computes
WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}
COPIES = frozenset(
    "_to_copy alias cat clone contiguous detach expand lift_fresh_copy reshape stack to".split()
)
"""Operators that keep every entry as it is, beside those that PyTorch knows as views."""


def fold_weights(program: ExportedProgram) -> tuple[ExportedProgram, dict[str, tuple[str, ...]]]:
    """Return `program` with what depends on weights alone as weights of its own.

    Returns:
        The program, a new one where anything was folded; and of each new weight, by its name, the
        names of the weights that it was computed from.
    """
    functional = _functional(program)
    facts = _facts(functional, _written(functional))
    values = {node: _value(functional, node) for node in _worth_folding(facts)}
    if not values:
        return program, {}
    return _with_weights(functional, values, facts)


def _functional(program: ExportedProgram) -> ExportedProgram:
    """`program` without writes in place, if there are some to what no input flows into."""
    facts = _facts(program, frozenset())
    if not any(node in facts and node.op != "placeholder" for node in _written(program)):
        return program
    with quiet():
        functional: ExportedProgram = program.run_decompositions({})
    return functional


def _written(program: ExportedProgram) -> frozenset[fx.Node]:
    """What nodes write in place, or view of it."""
    return frozenset(origin(value) for node in program.graph.nodes for value in writes(node))


@dataclass
class _Fact:
    """Of a node without inputs: what it is made of, and whether its entries were mixed."""

    weights: frozenset[str] = field(default_factory=frozenset)
    mixed: bool = False


def _facts(program: ExportedProgram, written: frozenset[fx.Node]) -> dict[fx.Node, _Fact]:
    """The nodes that no input, no free size and nothing of `written` flows into."""
    targets = _holders(program)
    facts: dict[fx.Node, _Fact] = {}
    for node in program.graph.nodes:
        if origin(node) in written:
            continue
        if node in targets:
            facts[node] = _Fact(frozenset({targets[node]}))
        elif node.op == "call_function" and _is_pure(node):
            given = node.all_input_nodes
            if all(each in facts for each in given) and _is_fixed(node):
                own = [facts[each] for each in given]
                weights = frozenset().union(*(fact.weights for fact in own))
                facts[node] = _Fact(weights, any(f.mixed for f in own) or _mixes(node, own))
    return facts


def _holders(program: ExportedProgram) -> dict[fx.Node, str]:
    """The placeholders of weights, with the weights' names."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    named = (node for node in program.graph.nodes if node.op == "placeholder")
    return {
        node: str(specs[node.name].target)
        for node in named
        if node.name in specs and specs[node.name].kind in WEIGHTS
    }


def _is_pure(node: fx.Node) -> bool:
    """Whether a node gives the same each time and writes nothing."""
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, OpOverload):
        return False
    drawn = torch.Tag.nondeterministic_seeded in node.target.tags
    mutable = node.target._schema.is_mutable  # noqa: SLF001  it is nowhere else
    return not drawn and (not mutable or node.target is DETACH)


def _is_fixed(node: fx.Node) -> bool:
    """Whether a node gives tensors of sizes that are known."""
    value = node.meta.get("val")
    parts = value if isinstance(value, tuple | list) else (value,)
    return all(
        isinstance(part, Tensor) and all(isinstance(size, int) for size in part.shape)
        for part in parts
    )


def _mixes(node: fx.Node, given: list[_Fact]) -> bool:
    """Whether a node computes with more than one entry of one weight."""
    target = node.target
    if not isinstance(target, OpOverload):
        return False
    views = all(result.alias_info is not None for result in target._schema.returns)  # noqa: SLF001
    if views or target.overloadpacket.__name__ in COPIES:
        return False
    if torch.Tag.pointwise in target.tags:
        return sum(bool(fact.weights) for fact in given) > 1
    return any(fact.weights for fact in given)


def _worth_folding(facts: Mapping[fx.Node, _Fact]) -> Iterator[fx.Node]:
    """Nodes at which weights that were computed with meet the rest of the program."""
    for node, fact in facts.items():
        value = node.meta.get("val")
        meets = any(user not in facts for user in node.users)
        if meets and fact.mixed and isinstance(value, Tensor) and not value.is_complex():
            yield node


def _value(program: ExportedProgram, end: fx.Node) -> Tensor:
    """What `end` always is.

    Raises:
        TraceError: if it cannot be computed: a singular matrix, a solver that does not converge.
    """
    weights = {**program.state_dict, **program.constants}
    failed = f"In {named(path_of(end))}, what depends on weights alone cannot be computed from them"
    try:
        plain = _run(program, end, weights, lambda value: value)
    except Exception as error:
        raise TraceError(f"{failed}: {summary(error)}") from error
    given = (weights[name] for name in weights_of(program, end))
    if bool(plain.isnan().any()) and not any(bool(each.isnan().any()) for each in given):
        raise TraceError(f"{failed}: it is no number, as the inverse of a singular matrix is none.")
    try:
        wide = _run(program, end, weights, _widened)
    except Exception:  # noqa: BLE001  what fixes its own type runs as it is
        return plain
    return wide.to(plain.dtype) if _agree(wide, plain) else plain


def in_double(program: ExportedProgram, end: fx.Node) -> Tensor:
    """What `end`, which no input flows into, always is, computed in float64 from the weights."""
    return _run(program, end, {**program.state_dict, **program.constants}, _widened)


def weights_of(program: ExportedProgram, end: fx.Node) -> set[str]:
    """The names of the weights that `end` is computed from."""
    targets = _holders(program)
    return {targets[node] for node in _ancestors(end) if node in targets}


def _agree(wide: Tensor, plain: Tensor) -> bool:
    if wide.shape != plain.shape or not plain.is_floating_point():
        return False
    distance = (wide - plain).abs()
    return bool((distance <= AGREES * plain.abs().max()).all())


def _run(
    program: ExportedProgram,
    end: fx.Node,
    weights: Mapping[str, Any],
    cast: Callable[[Any], Any],
) -> Tensor:
    """The value of `end`, with `cast` applied to weights and to the arguments of operators."""
    targets = _holders(program)
    known: dict[fx.Node, Any] = {}

    def argument(value: Any) -> Any:
        return known[value] if isinstance(value, fx.Node) else cast(value)

    with torch.no_grad():
        for node in _ancestors(end):
            if node in targets:
                known[node] = cast(weights[targets[node]].detach())
                continue
            args: Any = fx.node.map_aggregate(node.args, argument)
            given: Any = fx.node.map_aggregate(node.kwargs, argument)
            call: Any = node.target
            known[node] = call(*args, **given)
    result: Tensor = known[end]
    return result.detach().clone().contiguous()


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(WIDER.get(value.dtype, value.dtype))
    return WIDER.get(value, value) if isinstance(value, torch.dtype) else value


def _ancestors(end: fx.Node) -> list[fx.Node]:
    """All that `end` is computed from and itself, in the order of the program."""
    found, waiting = {end}, [end]
    while waiting:
        for each in waiting.pop().all_input_nodes:
            if each not in found:
                found.add(each)
                waiting.append(each)
    return [node for node in end.graph.nodes if node in found]


def _with_weights(
    program: ExportedProgram, values: Mapping[fx.Node, Tensor], facts: Mapping[fx.Node, _Fact]
) -> tuple[ExportedProgram, dict[str, tuple[str, ...]]]:
    """A copy of `program` in which each node of `values` is a weight that holds its value."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, copies))
    names: dict[fx.Node, str] = {}
    for node in values:
        names[node] = name_of_weight(node, node.name, {*_held(program), *names.values()})
    held = {names[node]: value for node, value in values.items()}
    holders = hold(graph, held, {names[node]: node.meta for node in values})
    for node in values:
        copies[node].replace_all_uses_with(holders[names[node]])
    graph.eliminate_dead_code()
    made = with_graph(program, graph, held, holders)
    return made, {names[node]: tuple(sorted(facts[node].weights)) for node in values}


def _held(program: ExportedProgram) -> set[str]:
    return {*program.state_dict, *program.constants}


def hold(
    graph: fx.Graph, values: Mapping[str, Tensor], metas: Mapping[str, dict[str, Any]]
) -> dict[str, fx.Node]:
    """Placeholders in front of `graph` for further weights, by their names."""
    first = next(iter(graph.nodes))
    holders: dict[str, fx.Node] = {}
    for name in reversed(list(values)):  # each stands in front of those before it
        with graph.inserting_before(first):
            holders[name] = graph.placeholder(f"w_{name.replace('.', '_')}")
        holders[name].meta = {**metas[name]}
        first = holders[name]
    return holders


def with_graph(
    program: ExportedProgram,
    graph: fx.Graph,
    values: Mapping[str, Tensor],
    holders: Mapping[str, fx.Node],
) -> ExportedProgram:
    """`program` with another graph, which has placeholders for further weights (`hold`)."""
    specs = [
        InputSpec(InputKind.BUFFER, TensorArgument(holders[name].name), name, persistent=True)
        for name in values
    ]
    specs += program.graph_signature.input_specs
    module = fx.GraphModule(program.graph_module, graph)
    signature = replace(program.graph_signature, input_specs=specs)
    with quiet():  # PyTorch warns of itself there
        return program._update(  # noqa: SLF001  it has no other
            module, signature, state_dict={**program.state_dict, **values}
        )


def name_of_weight(node: fx.Node, stem: str, taken: Collection[str]) -> str:
    """A name of its own for a weight of `node`'s module, and one that no value of a graph gets."""
    stem = f"{path_of(node) or FOLDED}.{stem}"
    return next(name for n in count() if (name := f"{stem}_{n}" if n else stem) not in taken)
