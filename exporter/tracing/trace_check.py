"""Compare a traced graph with its module at other shapes than it was traced with.

A branch on ``T > 1``, a rounding to even lengths or a chunk of tokens can be frozen into a graph
whose shapes all look free; only running it at other sizes tells.
"""

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from intaglio.errors import TraceError, UnsupportedError
from intaglio.exporter.sources.axes import Span, as_option
from intaglio.exporter.sources.outputs import name_outputs
from intaglio.exporter.sources.source import EXAMPLE_TIME, Source
from intaglio.passes.analysis.loop_ends import told
from intaglio.passes.evaluate import session
from intaglio.quiet import summary

from .capture import MEND
from .conditions import Condition, conditions
from .modules import ModuleStack, named
from .running import arguments, in_words, runner, several, taken_sizes
from .whole import AS_WHOLE

TOLD = 1.0  # of the largest, where it only tells how a loop ended
LIMIT = 1e-3  # of the largest output; a frozen shape is wrong by far more, rounding by far less
LONG = EXAMPLE_TIME + 131  # beyond the usual chunks of 64 and 128


class WrongGraphError(TraceError):
    """The graph gives something else than the module at other sizes than it was traced with."""


def check_trace(
    source: Source, program: ExportedProgram, model: ir.Model, max_context: int | None
) -> None:
    """Run graph and module at one token, at a few more than traced with, and at many.

    Raises:
        WrongGraphError: if they differ, naming the module that was frozen where it can be found.
    """
    engine = _engine(model)
    longest = LONG if max_context is None else min(LONG, max_context)
    for batch, time in ((1, 1), (4, min(EXAMPLE_TIME + 4, longest)), (2, longest)):
        inputs = source.random_inputs(batch, time, time)
        try:
            with torch.no_grad():
                expected = _outputs(source, inputs)
        except Exception as error:
            # A gathered table ends without a bound on time; statefulize finds its length.
            if time == LONG:
                return
            raise TraceError(
                f"The model itself fails on {batch} rows of {time} tokens "
                f"({summary(error)}); a step engine has to run any number, 1 included. {AS_WHOLE}"
            ) from error
        names, found = list(expected), {}
        feeds = {i.name: inputs[i.name].detach().numpy() for i in engine.get_inputs()}
        try:
            found = dict(zip(names, engine.run(names, feeds), strict=True))
            wrong = [n for n in names if not _agree(found[n], expected[n].numpy())]
        except Exception as error:  # noqa: BLE001  ONNX Runtime raises its own kinds
            wrong = [summary(error)]
        if wrong:
            where = f"{batch} rows of {time} tokens"
            message = _without_nan(wrong[0], found, expected, where)
            raise WrongGraphError(message or _explain(source, program, inputs, where, wrong[0]))


def _engine(model: ir.Model) -> Any:
    """ONNX Runtime with `model`.

    Raises:
        TraceError: if it refuses the graph that PyTorch made.
        UnsupportedError: if it has no kernel for one of its nodes.
    """
    try:
        return session(model)
    except UnsupportedError:
        raise
    except Exception as error:
        raise TraceError(
            f"PyTorch captured the model but converted it to a graph that is not valid: "
            f"{summary(error)}. Write the operation that it names in another way."
        ) from error


def _outputs(source: Source, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the module gives; in float64, rounded, where it gives no numbers in its own precision.

    A graph may carry in a form that is stable what the module sums up until it overflows.
    """
    found = name_outputs(source.module, source.module(**inputs), inputs)
    if all(bool(x.isfinite().all()) for x in found.values()):
        return found
    try:
        module = copy.deepcopy(source.module).double()
        wide = {n: x.double() if x.is_floating_point() else x for n, x in inputs.items()}
        again = name_outputs(module, module(**wide), wide)
    except Exception:  # noqa: BLE001  a module that fixes its dtype inside runs as it is
        return found
    if not all(bool(x.isfinite().all()) for x in again.values()):
        return found
    return {name: x.to(found[name].dtype) for name, x in again.items()}


def check_whole(
    source: Source, program: ExportedProgram, model: ir.Model, spans: Mapping[str, Span]
) -> dict[str, Span]:
    """Run graph and module at several sizes; return those that they take.

    Sizes that the module itself refuses are left out, unless the user asked for them.

    Raises:
        TraceError: if they differ, naming the module that was frozen where it can be found.
    """
    engine, run, ends = _engine(model), runner(source), told(model.graph)
    spans = taken_sizes(source, run, spans)
    assumed = conditions(source, program)
    broken = (each.broken(source.sizes, spans) for each in assumed)
    for sizes in (*several(source, spans), *(sizes for sizes in broken if sizes is not None)):
        inputs = source.draw(sizes, 1)
        try:
            expected = run(inputs)
        except Exception as error:
            if sizes and all(s in source.spans or n == source.sizes[s] for s, n in sizes.items()):
                raise TraceError(
                    f"The model itself fails at {in_words(sizes)} ({summary(error)}). Ask for "
                    "sizes that it takes, as --axes with NAME=LEAST..MOST:STEP says them."
                ) from error
            continue
        names, found = list(expected), {}
        feeds = {i.name: inputs[i.name].detach().numpy() for i in engine.get_inputs()}
        try:
            found = dict(zip(names, engine.run(names, feeds), strict=True))
            limits = {name: TOLD if name in ends else LIMIT for name in names}
            wrong = [n for n in names if not _agree(found[n], expected[n], limits[n])]
        except Exception as error:  # noqa: BLE001  ONNX Runtime raises its own kinds
            wrong = [summary(error)]
        if wrong:
            cause = next((each for each in assumed if not each.holds(sizes)), None)
            if cause is not None:
                raise TraceError(_assumed(source, cause, in_words(sizes), wrong[0]))
            where = in_words(sizes)
            message = _without_nan(wrong[0], found, expected, where)
            raise TraceError(message or _explain(source, program, inputs, where, wrong[0]))
    return spans


def _assumed(source: Source, cause: Condition, where: str, what: str) -> str:
    """The condition that the model was captured under, and how to ask for sizes that keep it."""
    shapes = {
        name: [
            f"{s}=LEAST..MOST:STEP" if (s := source.dynamic[name].get(axis)) in cause.names.values()
            else s or size
            for axis, size in enumerate(value.shape)
        ]
        for name, value in source.inputs.items()
    }  # fmt: skip
    return (
        f"At {where} the graph does not give what PyTorch gives ({what}): it was captured where "
        f"{cause}, as by a branch on that. Sizes that keep to it can be asked for: "
        f"{as_option(shapes)}; or fix an axis, with a number in the place of its name."
    )


def _agree(a: npt.NDArray[Any], b: npt.NDArray[Any], limit: float = LIMIT) -> bool:
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return False
    if b.dtype == np.bool_:
        return bool(np.array_equal(a, b))
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    scale = np.abs(b[finite]).max(initial=0.0)
    return bool(np.abs(a[finite] - b[finite]).max(initial=0.0) <= limit * scale)


def _without_nan(
    name: str, found: Mapping[str, Any], expected: Mapping[str, Any], where: str
) -> str:
    """In words, where the graph gives numbers for NaN of PyTorch and nothing else is wrong."""
    if name not in found:  # an error of ONNX Runtime
        return ""
    a, b = np.asarray(found[name]), np.asarray(expected[name])
    if a.shape != b.shape or b.dtype.kind != "f":
        return ""
    lost = np.isnan(b) & ~np.isnan(a)
    if not lost.any() or not _agree(np.where(lost, np.nan, a), b):
        return ""
    return (
        f"On {where} PyTorch gives NaN in {int(lost.sum())} of {b.size} places of {name!r} where "
        "the graph gives numbers: ONNX Runtime passes over NaN in a maximum or minimum along an "
        "axis, in its index and in max pooling. Keep NaN from arising in the model, as by a clamp "
        "of what is divided by."
    )


def _explain(
    source: Source,
    program: ExportedProgram,
    inputs: dict[str, Tensor],
    where: str,
    what: str,
) -> str:
    path = _first_wrong_module(source, program, inputs)
    if path is None:
        return (
            f"PyTorch captured the model rightly but converted it to an ONNX graph that gives "
            f"something else on {where} ({what}): an operation was converted wrongly or loses "
            "precision. Write it with other operations."
        )
    who = named(path)
    return (
        f"{who[0].upper()}{who[1:]} was frozen when it was traced with {in_words(source.sizes)}: "
        f"on {where} the graph does not give what PyTorch gives ({what}). {MEND}"
    )


def _first_wrong_module(
    source: Source, program: ExportedProgram, inputs: dict[str, Tensor]
) -> str | None:
    """The first module to finish in the source with an output that the program never computes."""
    replay = _Replay(program.graph_module)
    completed: list[tuple[str, Tensor]] = []

    def note(path: str, output: Any) -> None:
        if isinstance(output, Tensor):
            completed.append((path, output))

    with torch.no_grad():
        # What was computed until an error tells enough.
        with contextlib.suppress(Exception):
            replay.run(*arguments(program, inputs))
        with ModuleStack(source.module, note):
            source.module(**inputs)
    return next((path for path, output in completed if not replay.has(path, output)), None)


class _Replay(fx.Interpreter):
    """Runs a program node by node, keeping what leaves each module."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self._left: dict[str, list[Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            outside = [_modules(user) for user in n.users]
            for path in _modules(n):
                if any(path not in paths for paths in outside):
                    self._left.setdefault(path, []).append(value)
        return value

    def has(self, path: str, output: Tensor) -> bool:
        """Whether `output` left the module `path`; so it did where no node is of that module."""
        left = self._left.get(path)
        return left is None or any(_agree(value.numpy(), output.numpy()) for value in left)


def _modules(node: fx.Node) -> list[str]:
    return [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
