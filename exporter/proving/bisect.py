"""Where a bundle leaves its source: the first node whose result differs, with its module path.

The source is traced again and both graphs run on the same tokens with every value that they share
by name as an output: passes keep the name of a value only while its meaning stays.  The first such
value, in the bundle's order, that differs beyond the limit ends the part of the graph at fault; it
began at the shared values that still agree.  The tokens are given at once, and then in two parts,
which tells a state that is carried wrongly from a node that computes wrongly.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.call_ends import last_end
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import trace
from intaglio.graph_keys import MADE_OF, PARTS
from intaglio.passes import evaluate, stepping
from intaglio.passes.graph import dims, load_graph, made_of, module_of
from intaglio.runtime.graph_entry import MAIN, GraphEntry
from intaglio.runtime.manifest import FILE_NAME, Manifest
from intaglio.state import BATCH, PAST_LENGTH, TIME, Layout, time_of

TOKENS, SECOND = 29, 5
"""Tokens compared, and how many of them the second part holds: sizes that no dimension has."""
MOVES = frozenset(
    "Cast Concat Constant Expand Identity Reshape Slice Squeeze Transpose Unsqueeze".split()
)
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, None)

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first place where a bundle differs from its source.

    `module`, `op` and `node` name the node at fault, `others` what else lies between it and the
    last values that agree, `parameters` its weights that are not the source's, `derived` the
    parameters behind each of its weights that a pass computed, and `value` the first value that
    differs, by `error`.  `carried` tells that all tokens at once agree, so that
    the state it reads was left wrong by the step before.
    """

    module: str
    op: str
    node: str
    value: str
    error: float
    carried: bool
    parameters: tuple[str, ...]
    others: tuple[str, ...]
    derived: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def summary(self) -> str:
        """One sentence for people."""
        where = f"{self.module or 'the model itself'}: {self.op} {self.node!r}"
        why = "; its parameter " + ", ".join(self.parameters) + " differs from the source's"
        made = "".join(
            f"; its weight {name} is made of {', '.join(of)}" for name, of in self.derived.items()
        )
        carried = "; all tokens at once agree, so its state is carried wrongly"
        return (
            f"The first difference ({self.error:.2e}) is at {where}"
            f"{why if self.parameters else made}{carried if self.carried else ''}."
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            **{name: getattr(self, name) for name in ("module", "op", "node", "value", "error")},
            "carried": self.carried,
            "parameters": list(self.parameters),
            "others": list(self.others),
            "derived": {name: list(of) for name, of in self.derived.items()},
        }


def bisect(
    bundle: Path, source: Source, *, limit: float = 1e-4, name: str = MAIN
) -> Divergence | None:
    """The first difference between the graph `name` of `bundle` and `source`; None without one."""
    inputs = {n: x.numpy() for n, x in source.inputs.items()} if source.whole else None
    return first_divergence(bundle, trace(source).model, limit=limit, name=name, inputs=inputs)


def first_divergence(
    bundle: Path,
    traced: ir.Model,
    *,
    limit: float,
    name: str = MAIN,
    inputs: Arrays | None = None,
) -> Divergence | None:
    """The first difference between the graph of `bundle` and its source's training-form graph.

    A graph of whole inputs is run on `inputs`.
    """
    manifest = Manifest.load(bundle / FILE_NAME)
    entry = manifest.graphs[name]
    ends = entry.limits.ends
    tokens = last_end(ends, min(TOKENS, entry.limits.max_context or TOKENS))
    taken = (*entry.inputs, *entry.conditions)
    defaults = {spec.name: spec.default for spec in taken if spec.default is not None}
    sizes = {BATCH: 1, TIME: tokens}
    inputs = inputs or stepping.random_inputs(traced, [], sizes, defaults=defaults)
    prepared: Arrays = {}
    if entry.prepare is not None:
        prepare = _lowered(bundle, manifest.graphs[entry.prepare])
        probe, wanted = _probes(traced, prepare, inputs)
        given = {spec.name: inputs[spec.name] for spec in entry.conditions}
        prepared = evaluate.run(probe, given)
        found = _first(prepare, prepared, wanted, tokens, tokens, limit)
        if found is not None:
            value, error, agreed = found
            context = traced.graph.initializers, prepare.graph.initializers
            return _describe(value, error, agreed, context, carried=False)
    lowered = _lowered(bundle, entry)
    context = traced.graph.initializers, lowered.graph.initializers
    second = max(0, tokens - last_end(ends, tokens - 1)) if ends else min(SECOND, tokens - 1)
    probe, wanted = _probes(traced, lowered, inputs)
    parts = [[tokens], [tokens - second, second]] if second else [[tokens]]
    if entry.whole:
        del parts[1:]
    for carried, split in enumerate(parts):
        got = _last_part(probe, entry, {**inputs, **prepared}, split)
        found = _first(lowered, got, wanted, tokens, split[-1], limit)
        if found is not None:
            value, error, agreed = found
            return _describe(value, error, agreed, context, carried=bool(carried))
    return None


def _lowered(bundle: Path, entry: GraphEntry) -> ir.Model:
    """A graph as ONNX Runtime runs it, with its weights in memory."""
    return ir.external_data.load_to_model(load_graph(bundle, entry.targets["ort"].path))


def _probes(
    traced: ir.Model, lowered: ir.Model, inputs: Arrays
) -> tuple[ir.Model, dict[str, Array]]:
    """`lowered` with every value that both graphs have, and what these should be."""
    shared = _shared(traced, lowered)
    return _exposed(lowered, shared), evaluate.run(_exposed(traced, shared), inputs)


def _shared(traced: ir.Model, lowered: ir.Model) -> list[str]:
    """Floating-point values of one name, not of parameters alone, in the bundle's order."""
    known = {value.name for node in traced.graph for value in node.outputs}
    return [
        str(value.name)
        for node in lowered.graph
        for value in node.outputs
        if value.name in known
        and value.dtype in FLOATS
        and any(v is not None and not v.is_initializer() for v in node.inputs)
    ]


def _exposed(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of `model` that also returns the values `names`."""
    clone = model.clone()
    values = {value.name: value for node in clone.graph for value in node.outputs}
    returned = {value.name for value in clone.graph.outputs}
    for name in names:
        if name not in returned:
            value = values[name]
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            clone.graph.outputs.append(value)
    return clone


def _last_part(
    model: ir.Model, entry: GraphEntry, inputs: Arrays, split: Sequence[int]
) -> dict[str, Array]:
    """Every output of the last call when the tokens are given in the parts of `split`."""
    session = evaluate.session(model)
    names = [output.name for output in session.get_outputs()]
    takes = {given.name for given in session.get_inputs()}
    timed = {str(v.name): at for v in model.graph.inputs
             if v.name in inputs and (at := time_of(dims(v) or ())) is not None}  # fmt: skip
    changing = [spec for spec in entry.states if spec.layout is not Layout.PREPARED]
    states: dict[str, Array] = dict(stepping.first_states(changing, 1, sum(split)))
    done, results = 0, {}
    for part in split:
        feeds = {
            name: stepping.tokens_of(array, timed.get(name), done, done + part)
            for name, array in inputs.items()
            if name in takes
        }
        if entry.past_length:
            feeds[PAST_LENGTH] = np.array([done], np.int64)
        results = dict(zip(names, session.run(names, {**feeds, **states}), strict=True))
        states = {spec.input: results[spec.output] for spec in changing}
        done += part
    return results


def _first(
    model: ir.Model, got: Arrays, wanted: Arrays, tokens: int, last: int, limit: float
) -> tuple[ir.Value, float, set[str]] | None:
    """The first value that differs, by how much, and the names of those before it that agree."""
    agreed: set[str] = set()
    for node in model.graph:
        for value in node.outputs:
            name = str(value.name)
            if name not in wanted or name not in got:
                continue
            both = _comparable(got[name], wanted[name], tokens, last)
            if both is None:
                continue
            error = float(np.abs(both[0] - both[1]).max(initial=0))
            error /= max(float(np.abs(both[1]).max(initial=0)), 1e-30)
            if not error <= limit:
                return value, error, agreed
            agreed.add(name)
    return None


def _comparable(got: Array, wanted: Array, tokens: int, last: int) -> tuple[Array, Array] | None:
    """Both arrays for the same tokens: the last ones of `wanted`; None where shapes tell apart."""
    if got.ndim != wanted.ndim:
        return None
    differ = [axis for axis in range(got.ndim) if got.shape[axis] != wanted.shape[axis]]
    if differ and (
        len(differ) > 1 or wanted.shape[differ[0]] != tokens or got.shape[differ[0]] != last
    ):
        return None
    for axis in differ:
        wanted = wanted.take(range(tokens - last, tokens), axis)
    return got.astype(np.float64), wanted.astype(np.float64)


def _describe(
    value: ir.Value,
    error: float,
    agreed: set[str],
    initializers: tuple[Mapping[str, ir.Value], Mapping[str, ir.Value]],
    *,
    carried: bool,
) -> Divergence:
    region = list(_region(value, agreed))
    changed = tuple(_changed(region, *initializers))
    blamed = [n for n in region if _reads(n, changed)] or region
    # A rotation in front of fused attention gives no value that the source has: both are suspects.
    least = (*MOVES, "RotaryEmbedding")
    node = next((n for n in reversed(blamed) if n.op_type not in least), blamed[-1])
    return Divergence(
        module=module_of(node),
        op=node.op_type,
        node=str(node.name),
        value=str(value.name),
        error=error,
        carried=carried,
        parameters=changed,
        others=tuple(str(other.name) for other in region if other is not node),
        derived={
            str(weight.name): made_of(weight)
            for weight in _weights(node)
            if MADE_OF in weight.metadata_props and PARTS not in weight.metadata_props
        },
    )


def _reads(node: ir.Node, names: Sequence[str]) -> bool:
    """Whether `node` takes one of the parameters `names`, transposed or cast perhaps."""
    return any(part in names for weight in _weights(node) for part in _parts(weight))


def _weights(node: ir.Node) -> Iterator[ir.Value]:
    """The initializers that `node` takes, transposed or cast perhaps."""
    for value in node.inputs:
        maker = None if value is None else value.producer()
        if value is not None and value.is_initializer():
            yield value
        elif maker is not None and maker.op_type in MOVES:
            yield from _weights(maker)


def _parts(value: ir.Value) -> list[str]:
    """The parameters that an initializer is: itself, or those that lowering stacked by rows."""
    return list(json.loads(value.metadata_props.get(PARTS, json.dumps([value.name]))))


def _region(value: ir.Value, agreed: set[str]) -> Iterator[ir.Node]:
    """Nodes between `value` and the values that agree, from `value` backwards, but for shapes."""
    seen: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        node = waiting.pop(0).producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [
            v for v in node.inputs if v is not None and v.name not in agreed and v.dtype in FLOATS
        ]


def _changed(
    region: Sequence[ir.Node], source: Mapping[str, ir.Value], bundle: Mapping[str, ir.Value]
) -> Iterator[str]:
    """Parameters that the region reads and that are not the source's."""
    for node in region:
        for value in node.inputs:
            names = [] if value is None or value.name not in bundle else _parts(value)
            if not names or not all(name in source for name in names):
                continue
            tensors = [source[name].const_value for name in names]
            theirs = [tensor.numpy() for tensor in tensors if tensor is not None]
            assert value is not None
            stack = bundle[str(value.name)].const_value
            assert stack is not None
            ours, ends = stack.numpy(), np.cumsum([len(array) for array in theirs[:-1]])
            pieces = np.split(ours, ends) if len(names) > 1 else [ours]
            for name, piece, wanted in zip(names, pieces, theirs, strict=True):
                if not np.array_equal(piece, wanted):
                    yield name
