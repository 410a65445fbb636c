"""Capture a module as one program of PyTorch whose batch and time are free.

`torch.export` specialises silently or raises without saying where.  Here the free dimensions are
watched while the module runs under the tracer, so that an error names the module that fixed one.
"""

import contextlib
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import SymInt, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from intaglio.errors import TraceError
from intaglio.exporter.sources.source import Source
from intaglio.quiet import quiet, summary
from intaglio.state import BATCH, TIME

from .loops.described import PartedError
from .loops.roll import roll
from .modules import ModuleStack, named

UNBOUNDED = 2**31  # PyTorch's own infinities are above

MEND = (
    "A Python loop over it, int(), len() or a branch on it does that. Write the module with "
    "tensor operations, or with one of intaglio.ops such as torch.ops.intaglio.linear_attention."
)


def capture(source: Source) -> tuple[ExportedProgram, int | None]:
    """Return the program of `source`, and the largest time its tables allow, if any.

    Raises:
        TraceError: if the module cannot be captured with batch and time free; it names the module.
    """
    if isinstance(source.body, ExportedProgram):
        return source.body, _context_limit(source, source.body, _Watch({}))
    _refuse_single_examples(source)
    try:
        return _captured(source)
    except _FrozenError as refusal:
        try:
            rolled = roll(source)
        except PartedError as why:
            raise TraceError(
                f"{refusal} The loop could not be rolled up, since it {why}."
            ) from refusal
        if rolled is None:
            raise TraceError(
                f"{refusal} No loop that has an iteration for each token was found in it."
            ) from refusal
        return rolled, _context_limit(source, rolled, _Watch({}), contextlib.nullcontext())


class _FrozenError(TraceError):
    """The number of tokens is fixed or bounded, as a Python loop over them does it."""


def _captured(source: Source) -> tuple[ExportedProgram, int | None]:
    """The program of `source` as PyTorch captures it."""
    inputs = source.inputs
    shapes = {name: dict.fromkeys(source.dynamic.get(name, {}), Dim.DYNAMIC) for name in inputs}
    watch = _Watch(source.dynamic)
    root = source.module.register_forward_pre_hook(watch.start, with_kwargs=True)
    stack = ModuleStack(source.module, watch.look)
    try:
        with torch.no_grad(), quiet(), stack:
            program = torch.export.export(
                source.module, (), inputs, dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        kind = _FrozenError if (watch.fixed() or ("",))[0] == TIME else TraceError
        raise kind(_explain(error, stack, watch)) from error
    finally:
        root.remove()
    return program, _context_limit(source, program, watch)


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


def _context_limit(
    source: Source,
    program: ExportedProgram,
    watch: _Watch,
    trial: AbstractContextManager[Any] | None = None,
) -> int | None:
    """Hold every dimension asked to be free to that; return the bound of time.

    In `trial` the module runs beyond a bound: on tensors without contents, unless it is another.
    """
    trial = FakeTensorMode(allow_non_fake_inputs=True) if trial is None else trial
    limits = []
    symbols: dict[Any, str] = {}
    holders = [node for node in program.graph.nodes if node.op == "placeholder"]
    specs = program.graph_signature.input_specs
    values = {s.arg.name: n.meta["val"] for s, n in zip(specs, holders, strict=True)}
    for name, axes in source.dynamic.items():
        for axis, symbol in axes.items():
            size = values[name].shape[axis]
            if isinstance(size, int):
                raise _refusal(symbol)(_fixed(symbol, size, None))
            expression = size.node.expr
            if not expression.is_symbol or symbols.setdefault(expression, symbol) != symbol:
                raise TraceError(
                    f"The model runs only where the {symbol} of {name!r} is {expression}; "
                    "batch and time should both be free."
                )
            interval = program.range_constraints.get(expression)
            if interval is None or symbol not in (BATCH, TIME):  # a condition's own axis has ends
                continue
            # PyTorch keeps 0 and 1 apart from all other sizes; that both work is checked later.
            if interval.lower > 2:
                path = watch.culprit(symbol, lower=interval.lower)
                raise _refusal(symbol)(_bounded(symbol, f"at least {interval.lower}", path))
            if interval.upper < UNBOUNDED:
                limit = int(interval.upper)
                traced = isinstance(source.body, nn.Module)
                if symbol != TIME or (traced and _runs_at(source, limit + 1, trial)):
                    path = watch.culprit(symbol, upper=interval.upper)
                    raise _refusal(symbol)(_bounded(symbol, f"at most {limit}", path))
                limits.append(limit)
    return min(limits, default=None)


def _refusal(symbol: str) -> type[TraceError]:
    return _FrozenError if symbol == TIME else TraceError


def _runs_at(source: Source, time: int, trial: AbstractContextManager[Any]) -> bool:
    """Whether the module itself accepts `time` steps: then a smaller bound is none of its own."""
    try:
        with torch.no_grad(), quiet(), trial:
            source.module(**source.random_inputs(2, time, 0))
    except Exception:  # noqa: BLE001  any refusal by the module is the answer
        return False
    return True


def _explain(error: Exception, stack: ModuleStack, watch: _Watch) -> str:
    if (fixed := watch.fixed()) is not None:
        return _fixed(*fixed)
    where = f"{named(stack.current)}{_line(error)}"
    if isinstance(error, GuardOnDataDependentSymNode):
        return (
            f"In {where}, Python control flow depends on the values of tensors, which one graph "
            "cannot hold. Express the choice with torch.where or masks."
        )
    return f"PyTorch cannot capture {where}: {summary(error)}"


def _fixed(symbol: str, constant: int, path: str | None) -> str:
    who = "The model" if path is None else named(path)
    return f"{who[0].upper()}{who[1:]} turns the {symbol} into the constant {constant}. {MEND}"


def _bounded(symbol: str, bound: str, path: str | None) -> str:
    who = "The model" if path is None else named(path)
    return f"{who[0].upper()}{who[1:]} is captured for a {symbol} of {bound} only. {MEND}"


def _line(error: Exception) -> str:
    """The line of the user's own code that raised, empty when there is none."""
    library = str(Path(torch.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((library, str(Path(__file__).parents[1])))
    ]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
