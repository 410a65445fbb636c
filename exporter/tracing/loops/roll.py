"""Loops over tokens are rolled up again: a module is captured unrolled, and one scan is made of it.

`torch.export` unrolls a Python loop and so fixes the number of tokens.  The module is captured at
several numbers of tokens on purpose; in each program the repeated iteration is found (`streams`),
the programs are unified with each other (`outer`), and what results takes any number.  It is
captured again like any module, with batch and time free, and held to the source like any trace.
"""

import copy
import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.complex_numbers import as_pairs, pair_complex_numbers
from intaglio.exporter.tracing.gradients import carried_out, differentiates
from intaglio.exporter.tracing.plain_ops import made_plain_where
from intaglio.exporter.tracing.spellings import Spellings
from intaglio.quiet import quiet, summary
from intaglio.state import BATCH, TIME

from .chunk_sizes import chunk_size
from .chunked import CHUNK_RULES
from .loop_streams import PartedError
from .outer import Outer
from .parallel_scans import as_recurrences
from .terms import Terms, UnreadableError
from .tidy import RULES
from .told import lengths_beyond, told_numbers

ROWS = 29  # more than the small sizes inside a body, to which PyTorch compares the batch
VIEWS = frozenset({"aten.view.default", "aten._unsafe_view.default"})
SHORTEST = 6  # tokens; what starts in its own way and what ends so leave three iterations between
TRIED = (1, 2, 13, 31, 64)  # tokens at which a program without a loop is held to its source
DOUBLINGS = (16, 32, 64, 128, 256, 512, 1024)  # at which calls are counted
ROUNDS = (1, 2, 3, 4, 5, 8, 13, 16, 17, 31, 32, 33, 64, 65, 127, 128)  # of scans, as many and one
FAR = (139, 519, 1033, 2069, 4099)  # in which a chunk would end that the others are within
NEAR = 1e-4
SEEN = 1e-9  # of the largest, in float64: what is not rounding
LARGE = 100.0  # by how much later tokens are made larger
PLACES = 16  # of a chunk that are looked at
Prepared = Callable[[ExportedProgram, int], None]  # what changes a program of so many tokens
PROGRAMS = 2  # which give a line; the comparison with the source tells whether it is one


def roll(source: Source) -> ExportedProgram | None:
    """The program of `source` with its loops over tokens as scans.

    Without a loop it is the program at any number of tokens, which grows with that in straight
    lines, as where Python's `len` was asked; None where no such program gives what the source does.

    Raises:
        PartedError: there is a loop that cannot be rolled up; says why.
    """
    program = _rolled(source)
    if program is None:
        return None
    for tokens in lengths_beyond(told_numbers(source.module)):
        if not _agrees(source, program, tokens, far=True):
            raise PartedError(f"does something else where there are {tokens} tokens")
    return program


def takes_fixed_times(source: Source) -> bool:
    """Whether `source` can be captured at a fixed number of tokens at all."""
    try:
        _unrolled(source, _free(source, ROWS, 1)[0], _free(source, SHORTEST, 1)[0])
    except PartedError:
        return False
    return True


def _rolled(source: Source) -> ExportedProgram | None:
    parted: PartedError | None = None
    try:
        outer = _outer(source, 1)
        if outer.loops:
            return _captured(source, outer)
        if (program := _without_loops(source, outer)) is not None:
            return program
    except PartedError as error:
        parted = error
    if (program := _of_parallel_scans(source)) is not None:
        return program
    if _doubles(source):
        raise PartedError(
            "takes a few operations more for each doubling of the number of tokens, as a parallel "
            "scan does, of what is no sum of products: write the recurrence as a loop over tokens, "
            "whose engine computes many at once where it can"
        ) from parted
    batch = _free(source, ROWS, 1)[0]
    chunk = chunk_size(
        lambda time: _unrolled(source, batch, time),
        lambda time: _calls(source, time),
        _taken(source),
    )
    if chunk is not None:
        return _rolled_chunks(source, chunk)
    if parted is not None:
        raise parted
    return None


def _of_parallel_scans(source: Source) -> ExportedProgram | None:
    """The program of a source some of whose loops are scans in parallel; None where none is.

    Raises:
        PartedError: one that does otherwise for other numbers of tokens.
    """
    found: list[int] = []

    def prepared(program: ExportedProgram, time: int) -> None:
        found.append(as_recurrences(program, time))

    try:
        program = _captured(source, _outer(source, 1, prepared))
    except PartedError:
        if any(found):
            raise
        return None
    if not any(found):
        return None
    for tokens in (*ROUNDS, *FAR):
        if not _agrees(source, program, tokens, far=True):
            raise PartedError(f"does something else where there are {tokens} tokens")
    return program


def _without_loops(source: Source, outer: Outer) -> ExportedProgram | None:
    """The program of a graph that has no loop, if it is the source at other lengths too."""
    try:
        program = _captured(source, outer)
    except PartedError:
        return None
    short = all(_agrees(source, program, time) for time in TRIED)
    return program if short and all(_agrees(source, program, n, far=True) for n in FAR) else None


def _outer(source: Source, chunk: int, prepared: Prepared | None = None) -> Outer:
    """The graph around the loops of `source`, each iteration of which takes `chunk` tokens.

    Of programs that were `prepared` before, in place.
    """
    programs = []
    batch = _free(source, ROWS, 1)[0]
    taken = {n // chunk for n in _taken(source) if n % chunk == 0} | _taken(source) | {chunk}
    for count in itertools.islice(
        (n for n in itertools.count(SHORTEST) if n not in taken), PROGRAMS
    ):
        program = _unrolled(source, batch, count * chunk, prepared)
        sizes = {
            name: {a: s for a, s in source.dynamic.get(name, {}).items() if s != TIME}
            for name in source.inputs
        }
        rules = RULES if chunk == 1 else CHUNK_RULES
        try:
            with quiet():
                programs.append(Terms(program, count, sizes, rules, chunk))
        except UnreadableError as error:
            raise PartedError(f"holds {error}, which is not understood") from error
    outer = Outer(programs, source.dynamic)
    outer.build(list(source.inputs))
    return outer


def _rolled_chunks(source: Source, chunk: int) -> ExportedProgram:
    """The program of loops over chunks, which goes over tokens.

    A chunk is shown to let no token see a later one, and the last chunk, which the source may
    handle in its own way, to give what a whole one gives, at each length that it can have.
    """
    where = f"goes over chunks of {chunk} tokens and"
    if (seen := _seen_ahead(source, chunk)) is not None:
        raise PartedError(f"{where} looks ahead: token {seen} sees later ones of its chunk")
    try:
        outer = _outer(source, chunk)
        program = _captured(source, outer)
    except PartedError as error:
        raise PartedError(f"{where} {error}") from error
    if not outer.loops:
        raise PartedError(f"{where} carries nothing that could be found from one to the next")
    for length in (*range(1, chunk + 2), *range(2 * chunk + 1, 3 * chunk + 1)):
        if not _agrees(source, program, length):
            raise PartedError(f"{where} does something else where there are {length} tokens")
    return program


def _seen_ahead(source: Source, chunk: int) -> int | None:
    """The first token of a few in a second chunk whose result later ones change; None for none.

    The later ones are as large as makes a small weight of theirs seen.
    """
    time = 3 * chunk
    module, inputs = _in_double(source, source.random_inputs(2, time, 0))
    near = SEEN if module is not source.module else NEAR
    with torch.no_grad(), quiet():
        wanted = tree_leaves(module(**inputs))
        for token in range(chunk, 2 * chunk, max(1, chunk // PLACES)):
            changed = {name: _changed(source, name, x, token) for name, x in inputs.items()}
            found = tree_leaves(module(**changed))
            for a, b in zip(found, wanted, strict=True):
                axis = next((i for i, n in enumerate(b.shape) if n == time), None)
                if axis is None:
                    continue
                now, before = (x.narrow(axis, 0, token + 1) for x in (a, b))
                if not torch.allclose(now, before, rtol=0, atol=float(near * before.abs().max())):
                    return token
    return None


def _in_double(source: Source, inputs: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module and its inputs in float64, or as they are where it fixes its own numbers."""
    wide = {n: x.double() if x.is_floating_point() else x for n, x in inputs.items()}
    try:
        module = copy.deepcopy(source.module).double()
        with torch.no_grad(), quiet():
            module(**wide)
    except Exception:  # noqa: BLE001  whatever it raises, it takes no float64
        return source.module, inputs
    return module, wide


def _changed(source: Source, name: str, x: Tensor, token: int) -> Tensor:
    """`x` with other numbers after `token`."""
    axes = source.dynamic.get(name, {})
    axis = next((axis for axis, symbol in axes.items() if symbol == TIME), None)
    if axis is None:
        return x
    x = x.clone()
    later = x.narrow(axis, token + 1, x.shape[axis] - token - 1)
    later.copy_(later.flip(0) * -LARGE if x.is_floating_point() else later.flip(0))
    return x


def _agrees(source: Source, program: ExportedProgram, time: int, *, far: bool = False) -> bool:
    """Whether `program` gives what `source` does, to rounding, at `time` tokens.

    So it does, `far` from what it was captured at, where the source takes no so many.
    """
    inputs = source.random_inputs(1 if far else ROWS, time, time)
    try:
        with torch.no_grad(), quiet():
            wanted = source.module(**inputs)
    except Exception:  # noqa: BLE001  whatever it raises, it does not take so many
        return far
    try:
        with torch.no_grad(), quiet():
            # Sizes that PyTorch took apart by chance, as strides that differ, are no matter.
            found = program.module(check_guards=False)(**inputs)
        torch.testing.assert_close(
            tree_leaves(found), tree_leaves(wanted), rtol=NEAR, atol=NEAR, equal_nan=True
        )
    except Exception:  # noqa: BLE001  whatever it raises, the two are not one
        return False
    return True


def _apart(source: Source) -> int:
    """A number of tokens of which what is near it, or twice it, is no size of the source either.

    PyTorch takes sizes that are equal by chance for equal ones.
    """
    taken = _taken(source)
    return next(
        n for n in itertools.count(SHORTEST + 1) if taken.isdisjoint((n - 1, n, n + 1, 2 * n))
    )


def _free(source: Source, least: int, count: int) -> list[int]:
    """Sizes from `least` on that no dimension of the source has, so that none is taken for it."""
    taken = _taken(source)
    return list(itertools.islice((n for n in itertools.count(least) if n not in taken), count))


def _taken(source: Source) -> set[int]:
    """The fixed sizes of the source's weights and inputs."""
    module = source.module
    tensors = [*module.parameters(), *module.buffers()]
    inputs = [(source.inputs[n], axes) for n, axes in source.dynamic.items()]
    taken = {size for tensor in tensors for size in tensor.shape}
    return taken | {d for x, axes in inputs for axis, d in enumerate(x.shape) if axis not in axes}


def _unrolled(
    source: Source, batch: int, time: int, prepared: Prepared | None = None
) -> ExportedProgram:
    """The program of `source` at `time` tokens, in functional form, and `prepared` in place."""
    inputs = source.random_inputs(batch, time, 0)
    shapes = {
        name: {a: Dim.DYNAMIC for a, s in source.dynamic.get(name, {}).items() if s != TIME}
        for name in inputs
    }
    try:
        module = source.module
        if differentiates(source):
            module = carried_out(source, inputs, shapes)
        with torch.no_grad(), quiet(), Spellings():
            program = torch.export.export(module, (), inputs, dynamic_shapes=shapes, strict=False)
        if prepared is not None:  # before complex numbers are pairs
            with torch.no_grad(), quiet():
                program = program.run_decompositions({})
                prepared(program, time)
        if all(map(_is_functional, program.graph.nodes)):
            return program
        with torch.no_grad(), quiet():
            pair_complex_numbers(program)
            if made_plain_where(program, _is_functional):
                return program
            functional: ExportedProgram = program.run_decompositions({})
            return functional
    except Exception as error:
        raise PartedError(f"cannot be captured at {time} tokens either") from error


def _is_functional(node: fx.Node) -> bool:
    """Whether the functional form, which costs as much again, leaves a node as it is.

    It takes writes out, and takes apart what is views of other kinds, as `chunk` and `reshape`.
    """
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.is_complex():
        return False
    op = node.target
    if node.op != "call_function" or op is operator.getitem:
        return node.op != "call_module"
    if not isinstance(op, OpOverload):
        return isinstance(value, SymInt | SymFloat | SymBool | int | float)
    if op._schema.is_mutable:  # noqa: SLF001
        return False
    if all(argument.alias_info is None for argument in op._schema.arguments):  # noqa: SLF001
        return True
    composite = torch._C.DispatchKey.CompositeImplicitAutograd  # noqa: SLF001
    return not op.has_kernel_for_dispatch_key(composite)


class _Counted(TorchFunctionMode):
    """Counts calls of PyTorch's functions while it is entered."""

    count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types  # part of the protocol
        self.count += 1
        return func(*args, **(kwargs or {}))


def _calls(source: Source, time: int) -> int:
    """How many functions the source calls for `time` tokens; 0 where it does not take so many."""
    inputs = source.random_inputs(1, time, 0)
    counted = _Counted()
    try:
        with torch.no_grad(), quiet(), counted:
            source.module(**inputs)
    except Exception:  # noqa: BLE001  whatever it raises, it does not take so many
        return 0
    return counted.count


def _doubles(source: Source) -> bool:
    """Whether each doubling of the number of tokens adds as many calls as the one before."""
    made: list[int] = []
    for time in DOUBLINGS:
        made.append(_calls(source, time))
        if not made[-1] or len({b - a for a, b in itertools.pairwise(made)}) > 1:
            return False
    return made[0] < made[1]


def _captured(source: Source, outer: Outer) -> ExportedProgram:
    """The graph of `outer` as a program whose batch and time are free."""
    module = _module(source.module, outer)
    batch, time = source.sizes.get(BATCH, ROWS), _apart(source)
    inputs = source.random_inputs(batch, time, 0)
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
