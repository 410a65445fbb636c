"""Loops over tokens are rolled up again: a module is captured unrolled, and one scan is made of it.

`torch.export` unrolls a Python loop and so fixes the number of tokens.  The module is captured at
several numbers of tokens on purpose; in each program the repeated iteration is found (`streams`),
the programs are unified with each other (`outer`), and what results takes any number.  It is
captured again like any module, with batch and time free, and held to the source like any trace.
"""

import itertools
import operator

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.complex_numbers import as_pairs, pair_complex_numbers
from intaglio.exporter.tracing.gradients import carried_out, differentiates
from intaglio.quiet import quiet, summary
from intaglio.state import BATCH, TIME

from .described import PartedError
from .outer import Outer
from .terms import Terms, UnreadableError
from .tidy import RULES

ROWS = 29  # more than the small sizes inside a body, to which PyTorch compares the batch
VIEWS = frozenset({"aten.view.default", "aten._unsafe_view.default"})
SHORTEST = 6  # tokens; what starts in its own way and what ends so leave three iterations between
PROGRAMS = 2  # which give a line; the comparison with the source tells whether it is one


def roll(source: Source) -> ExportedProgram | None:
    """The program of `source` with its loops over tokens as scans; None where it has no loop.

    Raises:
        PartedError: there is a loop that cannot be rolled up; says why.
    """
    programs = []
    batch, *times = (*_free(source, ROWS, 1), *_free(source, SHORTEST, PROGRAMS))
    for time in times:
        program = _unrolled(source, batch, time)
        sizes = {n: {a: s for a, s in x.items() if s != TIME} for n, x in source.dynamic.items()}
        try:
            with quiet():
                programs.append(Terms(program, time, sizes, RULES))
        except UnreadableError as error:
            raise PartedError(f"holds {error}, which is not understood") from error
    outer = Outer(programs, source.dynamic)
    outer.build(list(source.inputs))
    if not outer.loops:
        return None
    return _captured(source, outer)


def _free(source: Source, least: int, count: int) -> list[int]:
    """Sizes from `least` on that no dimension of the source has, so that none is taken for it."""
    module = source.module
    tensors = [*module.parameters(), *module.buffers()]
    inputs = [(source.inputs[n], axes) for n, axes in source.dynamic.items()]
    taken = {size for tensor in tensors for size in tensor.shape}
    taken |= {d for x, axes in inputs for axis, d in enumerate(x.shape) if axis not in axes}
    return list(itertools.islice((n for n in itertools.count(least) if n not in taken), count))


def _unrolled(source: Source, batch: int, time: int) -> ExportedProgram:
    """The program of `source` at `time` tokens, in functional form."""
    inputs = source.random_inputs(batch, time, 0)
    shapes = {
        name: {a: Dim.DYNAMIC for a, s in source.dynamic.get(name, {}).items() if s == BATCH}
        for name in inputs
    }
    try:
        module = source.module
        if differentiates(source):
            module = carried_out(source, inputs, shapes)
        with torch.no_grad(), quiet():
            program = torch.export.export(module, (), inputs, dynamic_shapes=shapes, strict=False)
            pair_complex_numbers(program)
            functional: ExportedProgram = program.run_decompositions({})
            return functional
    except Exception as error:
        raise PartedError(f"cannot be captured at {time} tokens either") from error


def _captured(source: Source, outer: Outer) -> ExportedProgram:
    """The graph of `outer` as a program whose batch and time are free."""
    module = _module(source.module, outer)
    inputs = source.inputs
    shapes = {name: dict.fromkeys(source.dynamic.get(name, {}), Dim.DYNAMIC) for name in inputs}
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(module, (), inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise PartedError(
            f"takes some numbers of rows and tokens alone once it is rolled up ({summary(error)})"
        ) from error


def _module(source: nn.Module, outer: Outer) -> nn.Module:
    """The graph of `outer` as a module, with the weights of `source` under their names."""
    names = {str(node.target) for node in outer.graph.nodes if node.op == "get_attr"}
    owned = {name: outer.root.get(name) for name in names}
    for name in names - outer.root.keys():
        owned[name] = as_pairs(operator.attrgetter(name)(source))
    graphs = [outer.graph, *(x.graph for x in owned.values() if isinstance(x, fx.GraphModule))]
    for node in (node for graph in graphs for node in graph.nodes):
        if str(node.target) in VIEWS:  # of what was copied before, which is left out
            node.target = torch.ops.aten.reshape.default
    for body in owned.values():
        if isinstance(body, fx.GraphModule):
            body.recompile()
    return fx.GraphModule(owned, outer.graph)
