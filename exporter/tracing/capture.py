"""Capture a module as one program of PyTorch whose named axes are free.

`torch.export` specialises silently or raises without saying where.  Here the free dimensions are
watched while the module runs under the tracer, so that an error names the module that fixed one.
"""

import contextlib
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor, fx, nn
from torch._dynamo.exc import UncapturedHigherOrderOpError
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from intaglio.errors import TraceError
from intaglio.exporter.sources.axes import Span, as_option
from intaglio.exporter.sources.source import Source
from intaglio.quiet import quiet, summary
from intaglio.state import BATCH, TIME

from .any_chosen import with_some_chosen
from .at_fault import line_of, own_line, run_examples
from .cumulative import Scans
from .gradients import FixedTimeError, carried_out, differentiates
from .loops.loop_streams import PartedError
from .loops.roll import roll, takes_fixed_times
from .modules import ModuleStack, named, path_of
from .running import arguments
from .scans import in_order
from .small_matrices import instead
from .spellings import Spellings
from .whole_numbers import free_sizes

UNBOUNDED = 2**31  # PyTorch's own infinities are above
MOST_SHORT = 32  # tokens below which each number of them is tried
MOST_PLAIN = 4  # arguments of a slice that takes neighbours
SPARE_ROWS = 4  # of a table of positions, for padding

MEND = (
    "A Python loop over it, int(), len() or a branch on it does that. Write the module with "
    "tensor operations, or with one of intaglio.ops such as torch.ops.intaglio.linear_attention."
)
VALUES = (
    "Express a choice with torch.where or masks, a loop until something holds with "
    "torch._higher_order_ops.while_loop, and one that drops entries, as suppression of boxes, as "
    "a loop over a fixed number of them with a mask of those that stay."
)


def capture(source: Source) -> tuple[ExportedProgram, dict[str, Span]]:
    """Return the program of `source`, and the sizes that it allows each free axis.

    Raises:
        TraceError: if the module cannot be captured with all of them free; it names the module.
    """
    if isinstance(source.body, ExportedProgram):
        return source.body, _spans(source, source.body, _Watch({}))
    _refuse_single_examples(source)
    try:
        module = source.module
        if differentiates(source):
            module = carried_out(source, source.inputs, source.dynamic)
        return _captured(source, module)
    except (_FrozenError, FixedTimeError) as refusal:
        try:
            rolled = roll(source)
        except PartedError as why:
            raise TraceError(
                f"{refusal} The loop could not be rolled up, since it {why}."
            ) from refusal
        if rolled is None:
            raise TraceError(
                f"{refusal} No loop that has an iteration for each token was found in it; where it "
                "goes over chunks of several tokens, give it chunks of one, or use its recurrent "
                "form."
            ) from refusal
        return rolled, _spans(source, rolled, _Watch({}), contextlib.nullcontext())
    except TraceError as refusal:
        # What a number of tokens is asked for may be no free size: a logarithm, a table's rows.
        if TIME not in source.symbols or not takes_fixed_times(source):
            raise
        return capture_again(source, refusal, alone=True)


def capture_again(
    source: Source, refusal: TraceError, *, alone: bool = False
) -> tuple[ExportedProgram, dict[str, Span]]:
    """The program of `source` by way of programs of several fixed numbers of tokens.

    Raises:
        TraceError: `refusal`, if there is none, or it is none of that source; `alone`, or with what
            else was in the way.
    """
    try:
        rolled = None if source.whole or not isinstance(source.body, nn.Module) else roll(source)
    except PartedError as why:
        if alone:
            raise refusal from why
        raise TraceError(f"{refusal} As a loop it {why}.") from refusal
    if rolled is None:
        raise refusal
    return rolled, _spans(source, rolled, _Watch({}), contextlib.nullcontext())


class _FrozenError(TraceError):
    """The number of tokens is fixed or bounded, as a Python loop over them does it."""


def _captured(source: Source, module: nn.Module) -> tuple[ExportedProgram, dict[str, Span]]:
    """The program of `module`, the one of `source` or what stands for it."""
    inputs = source.inputs
    shapes = _dynamic_shapes(source)
    watch = _Watch(source.dynamic)
    root = module.register_forward_pre_hook(watch.start, with_kwargs=True)
    stack = ModuleStack(module, watch.look)
    try:
        scans = Scans(stepped=not source.whole)
        with torch.no_grad(), quiet(), Spellings(), scans, in_order(), free_sizes(module):
            try:
                with stack:
                    program = _export(module, inputs, shapes)
            except UncapturedHigherOrderOpError:  # bodies of loops are captured without any hook
                root.remove()
                program = _export(module, inputs, shapes)
    except Exception as error:
        if isinstance(error, GuardOnDataDependentSymNode) and not source.whole:
            root.remove()
            chosen = _of_chosen(source, module)
            if chosen is not None:
                return chosen, _spans(source, chosen, watch)
        with quiet():
            run_examples(source.module, inputs)
        kind = _FrozenError if (watch.fixed() or ("",))[0] == TIME else TraceError
        raise kind(_explain(error, stack, watch, source)) from error
    finally:
        root.remove()
    if not source.whole and (path := _splits(program)) is not None:
        raise _FrozenError(_fixed(TIME, source.sizes[TIME], path, source))
    spans = _spans(source, program, watch)
    if not source.whole and (_fills_chunks(program) or (source.pace == 1 and _halves(program))):
        with contextlib.suppress(TraceError):
            return capture_again(source, TraceError("It is captured as it is."))
    return program, spans


def _of_chosen(source: Source, module: nn.Module) -> ExportedProgram | None:
    """The program of a module that asks whether any row is chosen, if there is one."""
    inputs, shapes = source.inputs, _dynamic_shapes(source)

    def export(answered: TorchFunctionMode) -> ExportedProgram:
        with torch.no_grad(), quiet(), Spellings(), answered, free_sizes(module):
            return _export(module, inputs, shapes)

    try:
        return with_some_chosen(export)
    except Exception:  # noqa: BLE001  the first error says what is in the way
        return None


def _fills_chunks(program: ExportedProgram) -> bool:
    """Whether something is padded to a multiple of a size."""
    for node in program.graph.nodes:
        if node.target in (torch.ops.aten.pad.default, torch.ops.aten.constant_pad_nd.default):
            sizes = [each.meta["val"] for each in node.args[1] if isinstance(each, fx.Node)]
            if any("Mod" in str(size) or "//" in str(size) for size in sizes):
                return True
    return False


def _halves(program: ExportedProgram) -> bool:
    """Whether every second entry of every second entry is taken, as a recursion does.

    PyTorch ends that where it ends for the example, without a word.
    """
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.slice.Tensor and len(node.args) > MOST_PLAIN:
            sizes = node.meta["val"].shape
            if any(str(size).count("//") > 1 for size in sizes if isinstance(size, SymInt)):
                return True
    return False


def _splits(program: ExportedProgram) -> str | None:
    """The module in which an axis of a free size is split into as many parts as the example has.

    PyTorch fixes the number of these without a word.
    """
    for node in program.graph.nodes:
        if node.target is not torch.ops.aten.split.Tensor:
            continue
        value, axis = node.args[0].meta["val"], node.args[2] if len(node.args) > 2 else 0
        if isinstance(value.shape[axis], SymInt):
            return path_of(node)
    return None


def _export(module: nn.Module, inputs: dict[str, Any], shapes: Any) -> ExportedProgram:
    return torch.export.export(module, (), inputs, dynamic_shapes=shapes, strict=False)


def _dynamic_shapes(source: Source) -> dict[str, dict[int, Any]]:
    """What PyTorch is asked to leave free; of an axis in steps, the number of its steps."""
    stepped = {
        symbol: span.step * Dim(f"steps_{index}", min=1, max=UNBOUNDED // span.step)
        for index, (symbol, span) in enumerate(source.spans.items())
        if span.step > 1 and span.least % span.step == 0
    }
    if source.pace > 1:
        stepped[TIME] = source.pace * Dim("tokens", min=1, max=UNBOUNDED // source.pace)
    return {
        name: {a: stepped.get(s, Dim.DYNAMIC) for a, s in source.dynamic.get(name, {}).items()}
        for name in source.inputs
    }


class Interval(NamedTuple):
    """What a dimension may be; its ends compare with integers, infinite ones too."""

    lower: Any
    upper: Any


class _Watch:
    """When, and in which module, a free dimension of an input became fixed or bounded."""

    def __init__(self, dynamic: dict[str, dict[int, str]]) -> None:
        self._dynamic = dynamic
        self._sizes: dict[tuple[str, int], SymInt] = {}
        self._events: list[tuple[str, Interval, str]] = []  # symbol, what it may be, module path

    def start(self, _module: nn.Module, _args: Any, inputs: dict[str, Any]) -> None:
        """Take hold of the dimensions when the model is entered."""
        for name, axes in self._dynamic.items():
            for axis in axes:
                size = inputs[name].shape[axis]
                if isinstance(size, SymInt):
                    self._sizes[name, axis] = size

    def look(self, path: str, _output: Any) -> None:
        """Note what the dimensions may be by now, `path` being the module that ran."""
        for (name, axis), size in self._sizes.items():
            expression = size.node.expr
            bounds = size.node.shape_env.bound_sympy(expression)
            event = (self._dynamic[name][axis], Interval(bounds.lower, bounds.upper))
            if event not in ((symbol, interval) for symbol, interval, _ in self._events):
                self._events.append((*event, path))

    def fixed(self) -> tuple[str, int, str] | None:
        """The first dimension that became a constant: its symbol, the constant, the module."""
        found = ((s, i.lower, path) for s, i, path in self._events if i.lower == i.upper)
        return next(found, None)

    def culprit(self, symbol: str, **bound: int) -> str | None:
        """The module in which a dimension first had `lower` or `upper` as its bound."""
        for name, interval, path in self._events:
            if name == symbol and bound.items() <= interval._asdict().items():
                return path
        return None


def _refuse_single_examples(source: Source) -> None:
    for name, value in source.inputs.items():
        for axis, symbol in source.dynamic.get(name, {}).items():
            if value.shape[axis] < 2:
                raise TraceError(
                    f"The example input {name!r} has the shape {list(value.shape)}: its {symbol} "
                    "should be at least 2, since PyTorch takes a size of 1 for a constant."
                )


def _spans(
    source: Source,
    program: ExportedProgram,
    watch: _Watch,
    trial: AbstractContextManager[Any] | None = None,
) -> dict[str, Span]:
    """Hold every dimension asked to be free to that; return the sizes that each may have.

    In `trial` the module runs beyond a bound: on tensors without contents, unless it is another.
    """
    trial = FakeTensorMode(allow_non_fake_inputs=True) if trial is None else trial
    symbols: dict[Any, str] = {}
    spans = {symbol: source.spans.get(symbol, Span()) for symbol in source.symbols}
    for name, value in _values(source, program).items():
        for axis, symbol in source.dynamic.get(name, {}).items():
            size = value.shape[axis]
            if isinstance(size, int):
                raise _refusal(symbol)(_fixed(symbol, size, None, source))
            expression = size.node.expr
            if symbols.setdefault(expression, symbol) != symbol:
                raise TraceError(
                    f"The model runs only where {symbol} is {symbols[expression]}. "
                    f"{_alike(source, {symbol: symbols[expression]})}"
                )
            counted = symbol in source.spans or (symbol == TIME and source.pace > 1)
            if not expression.is_symbol and not counted:
                raise TraceError(
                    f"The model runs only where the {symbol} of {name!r} is {expression}; "
                    f"{_ranges(source, symbol, str(expression))}"
                )
            interval = program.range_constraints.get(expression)
            if interval is not None and symbol == TIME:
                most = interval.upper
                most = most // source.pace if most < UNBOUNDED - 2 * source.pace else UNBOUNDED
                interval = Interval(-(-interval.lower // source.pace), most)  # in tokens
            if interval is not None:
                spans[symbol] = _narrowed(
                    source, symbol, program, interval, watch, spans[symbol], trial
                )
    return spans


def _refusal(symbol: str) -> type[TraceError]:
    return _FrozenError if symbol == TIME else TraceError


def _values(source: Source, program: ExportedProgram) -> dict[str, Any]:
    """What PyTorch knows of the inputs, by the names of the source."""
    holders = [node for node in program.graph.nodes if node.op == "placeholder"]
    specs = program.graph_signature.input_specs
    mine = [n for s, n in zip(specs, holders, strict=True) if s.kind is InputKind.USER_INPUT]
    return {name: node.meta["val"] for name, node in zip(source.inputs, mine, strict=True)}


def _narrowed(
    source: Source,
    symbol: str,
    program: ExportedProgram,
    interval: Any,
    watch: _Watch,
    span: Span,
    trial: AbstractContextManager[Any],
) -> Span:
    """The sizes of `span` that PyTorch captured the model for."""
    if symbol not in (BATCH, TIME) and not source.whole:  # a condition's own axis has ends
        return span
    # PyTorch keeps 0 and 1 apart from all other sizes; that both work is checked later.
    least, most = interval.lower, interval.upper
    if least > 2 and least > span.least and not _holds_below(source, program, symbol, least):
        path = watch.culprit(symbol, lower=least)
        if not source.whole or symbol in source.spans:
            raise _refusal(symbol)(_bounded(source, symbol, f"at least {least}", path))
        span = replace(span, least=int(least))
    if most >= UNBOUNDED or (span.most is not None and most >= span.most):
        return span
    limit = int(most)
    traced = isinstance(source.body, nn.Module)
    tables = symbol == TIME or source.whole
    if not tables or (traced and _runs_at(source, symbol, limit + 1, trial)):
        path = watch.culprit(symbol, upper=most)
        if not tables or not _ends_a_table(source.module, path, limit):
            raise _refusal(symbol)(_bounded(source, symbol, f"at most {limit}", path))
    return replace(span, most=limit)


def _holds_below(source: Source, program: ExportedProgram, symbol: str, least: int) -> bool:
    """Whether `program` gives what the module gives at each size below `least`, a small one.

    Of a slice ``x[:, :-2]`` PyTorch asks whether one entry is left of it, which would be repeated
    beside others, and keeps the answer; where nothing is repeated, the program is the same.
    """
    if symbol != TIME or source.whole or least > MOST_SHORT:
        return False
    run = fx.Interpreter(program.graph_module)  # without what PyTorch asks of sizes beforehand
    for tokens in range(1, least):
        for seed, rows in ((0, 2), (1, 3)):
            inputs = source.draw({TIME: tokens, BATCH: rows}, seed)
            try:
                with torch.no_grad(), quiet():
                    found = list(run.run(*arguments(program, inputs)))
                    wanted = pytree.tree_leaves(source.module(**inputs))
                torch.testing.assert_close(found, wanted, equal_nan=True)
            except Exception:  # noqa: BLE001  any difference is the answer
                return False
    return True


def _ends_a_table(module: nn.Module, path: str | None, limit: int) -> bool:
    """Whether a table ends there: what a slice beyond its end gives is shorter than the time.

    A table is a tensor of the module at `path`, or a buffer of any, which is what another gave it.
    """
    owner = module if path is None else module.get_submodule(path)
    held = [*vars(owner).values(), *owner.parameters(recurse=False), *module.buffers()]
    tables = [value for value in held if isinstance(value, Tensor)]
    return any(limit <= size < limit + SPARE_ROWS for table in tables for size in table.shape)


def _runs_at(source: Source, symbol: str, size: int, trial: AbstractContextManager[Any]) -> bool:
    """Whether the module itself accepts `size`: then a smaller bound is none of its own."""
    inputs = source.draw({symbol: size}, 0)  # real ones: how they are drawn looks at values
    try:
        with torch.no_grad(), quiet(), trial:
            source.module(**inputs)
    except Exception:  # noqa: BLE001  any refusal by the module is the answer
        return False
    return True


def _explain(error: Exception, stack: ModuleStack, watch: _Watch, source: Source) -> str:
    if (fixed := watch.fixed()) is not None:
        return _fixed(*fixed, source)
    where = f"{named(stack.current)}{line_of(error)}"
    if isinstance(error, GuardOnDataDependentSymNode):
        line = own_line(error)
        what = "" if line is None or not line.line else f" `{line.line}`:"
        return (
            f"In {where},{what} Python control flow depends on the values of tensors, which one "
            f"graph cannot hold. {VALUES}"
        )
    said = summary(error)
    hint = instead(said)
    return f"PyTorch cannot capture {where}: {said}" + (f". {hint}" if hint else "")


def _fixed(symbol: str, constant: int, path: str | None, source: Source) -> str:
    who = "The model" if path is None else named(path)
    shapes = _shapes(source, {symbol: constant})
    return (
        f"{who[0].upper()}{who[1:]} turns the {symbol} into the constant {constant}. {MEND}"
        f" Or keep it at that size: {as_option(shapes)}."
    )


def _bounded(source: Source, symbol: str, bound: str, path: str | None) -> str:
    who = "The model" if path is None else named(path)
    edge = bound.rpartition(" ")[2]
    sizes = f"{edge}.." if bound.startswith("at least") else f"..{edge}"
    return (
        f"{who[0].upper()}{who[1:]} is captured for a {symbol} of {bound} only. {MEND} "
        f"{_ranges(source, symbol, bound, sizes)}"
    )


def _ranges(source: Source, symbol: str, said: str, sizes: str | None = None) -> str:
    """How to ask for the sizes of an axis that the model takes."""
    step = next((int(word) for word in re.findall(r"\d+", said)), 1)
    words = f"{symbol}={sizes or f'{step}..:{step}'}"
    return f"Or say which it takes: {as_option(_shapes(source, {symbol: words}))}."


def _alike(source: Source, names: Mapping[str, str]) -> str:
    return f"Give them one name: {as_option(_shapes(source, names))}."


def _shapes(source: Source, names: Mapping[str, int | str]) -> dict[str, list[int | str]]:
    """The dimensions of the inputs, symbols replaced as `names` says."""
    return {
        name: [names.get(s, s) if (s := source.dynamic[name].get(axis)) else size
               for axis, size in enumerate(value.shape)]
        for name, value in source.inputs.items()
    }  # fmt: skip
