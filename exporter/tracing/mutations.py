"""Buffers that a module writes while it runs: left out where nothing depends on them, or refused.

A counter of calls or a running mean that is only kept changes no output, so a step engine does
without it.  A buffer whose old value reaches an output is a state that outlives a call, which the
exporter does not carry: it would be the same for all rows and never be reset.
"""

import operator
from collections.abc import Iterator

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from intaglio.errors import TraceError
from intaglio.quiet import quiet

DETACH = torch.ops.aten.detach_.default


def idle_buffers(program: ExportedProgram) -> list[str]:
    """Names of the buffers that `program` writes and whose values reach no output.

    Raises:
        TraceError: if one of them does reach an output.
    """
    signature = program.graph_signature
    holders = (node for node in program.graph.nodes if node.op == "placeholder")
    kinds = {node: spec.kind for node, spec in zip(holders, signature.input_specs, strict=True)}
    written_in_place = {origin(value) for node in program.graph.nodes for value in writes(node)}
    if not any(kinds.get(node) is InputKind.BUFFER for node in written_in_place):
        return []
    with quiet():
        program = program.run_decompositions({})  # which turns what is written into outputs
    signature = program.graph_signature
    written = [
        str(spec.target)
        for spec in signature.output_specs
        if spec.kind is OutputKind.BUFFER_MUTATION
    ]
    results = next(iter(reversed(program.graph.nodes))).args[0]
    assert isinstance(results, tuple | list)
    returned = {
        node
        for node, spec in zip(results, signature.output_specs, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(node, fx.Node)
    }
    holders = (node for node in program.graph.nodes if node.op == "placeholder")
    for node, spec in zip(holders, signature.input_specs, strict=True):
        if spec.kind is InputKind.BUFFER and spec.target in written and _reaches(node, returned):
            raise TraceError(
                f"The buffer {spec.target!r} is written by each call, and what the next call "
                "returns depends on it. A bundle carries what attention, convolutions and "
                "recurrences keep for each row, not buffers. If it is a cache of earlier tokens, "
                "export the forward that takes all of them without it: the engine makes its own. "
                "Otherwise compute it from the inputs, or keep its trained value: write it in "
                "training only, under `if self.training:`."
            )
    return written


def writes(node: fx.Node) -> Iterator[fx.Node]:
    """What `node` writes to, if it is an operator that changes values in place.

    `detach_`, which follows each `torch.tensor` of a forward, changes none.
    """
    if not isinstance(node.target, OpOverload) or node.target is DETACH:
        return
    formal = node.target._schema.arguments  # noqa: SLF001  PyTorch says it nowhere else
    given = dict(zip((argument.name for argument in formal), node.args, strict=False))
    for argument in formal:
        if argument.is_write:
            value = (given | node.kwargs).get(argument.name)
            values = value if isinstance(value, list | tuple) else (value,)
            yield from (entry for entry in values if isinstance(entry, fx.Node))


def origin(node: fx.Node) -> fx.Node:
    """What `node` may be a view of."""
    while node.args and isinstance(source := node.args[0], fx.Node):
        if isinstance(node.target, OpOverload):
            results = node.target._schema.returns  # noqa: SLF001
            if all(result.alias_info is None for result in results):
                break
        elif node.target is not operator.getitem:
            break
        node = source
    return node


def _reaches(start: fx.Node, ends: set[fx.Node]) -> bool:
    """Whether something in `ends` is computed from `start`."""
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        if node in ends:
            return True
        for user in node.users:
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return False
