"""What a source computes: its outputs, and the states a step engine should carry at any step.

A training-form module has no states.  They follow from the calls of operators that mix time, which
are caught while the module runs (`caught_calls`).  It runs in float64 where it can.
"""

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, fx

from intaglio.errors import IntaglioError, ParityError, SourceError
from intaglio.exporter.sources.axes import as_option
from intaglio.exporter.sources.outputs import name_outputs
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.adopt import open_original, run_original
from intaglio.exporter.tracing.exchanged import exchanged
from intaglio.exporter.tracing.running import as_written
from intaglio.quiet import summary
from intaglio.state import BATCH, TIME, StateSpec

from .caught_calls import CaughtCall, Key, recorded
from .widened import Widened, cause, precision_of

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Outputs of a source on whole sequences, and the states on the way.

    `outputs` has the time axis of the inputs; `precision` is float64 where the module ran so, and
    `cause` says why where it did not;
    `rows` is how many rows the inputs have; of the caches in `caches`, by module and port, each
    head keeps some entries alone.
    """

    outputs: Mapping[str, Array]
    precision: str
    calls: Mapping[Key, CaughtCall]
    cause: str = ""
    rows: int = 0
    caches: Mapping[tuple[str, str], Sequence[Sequence[int]]] = field(default_factory=dict)

    def state(self, spec: StateSpec, tokens: int) -> Array | None:
        """The state `spec` after `tokens` tokens, None where no call of the source tells it.

        A growing cache holds exactly the tokens consumed along its axis, a static one as well: its
        valid part.  A window holds zeros before the first token.

        Raises:
            ParityError: if the source's own state does not fit `spec`.
        """
        value = self._called(spec, tokens)
        if value is None:
            return None
        value = _kept(_bands_apart(value, spec), self.caches.get((spec.module, spec.port)))
        fixed = [
            (d, n) for d, n in zip(spec.shape, value.shape, strict=False) if isinstance(d, int)
        ]
        if len(spec.shape) != value.ndim or any(d != n for d, n in fixed):
            raise ParityError(
                f"The state {spec.input!r} of module {spec.module!r} has the shape "
                f"{list(spec.shape)}; from the source it follows as {list(value.shape)}."
            )
        array: Array = value.numpy()
        return array

    def _called(self, spec: StateSpec, tokens: int) -> Tensor | None:
        """The state of its call; where rows were joined, the part of them that `spec` is of."""
        first = self.calls.get((spec.module, spec.op, 0))
        value = None if first is None else first.state(spec, tokens)
        axis, parts = (spec.shape.index(BATCH) if BATCH in spec.shape else None), 1
        if value is not None and axis is not None and value.ndim == len(spec.shape) and self.rows:
            parts = max(value.shape[axis] // self.rows, 1)
        number, part = divmod(spec.call, parts)
        if number:
            call = self.calls.get((spec.module, spec.op, number))
            value = None if call is None else call.state(spec, tokens)
        return value if value is None or parts == 1 else value.chunk(parts, axis or 0)[part]


def _kept(value: Tensor, entries: Sequence[Sequence[int]] | None) -> Tensor:
    """A cache [batch, heads, tokens, size] with the entries of each head that a bundle keeps."""
    if entries is None or value.ndim != 4 or value.shape[1] != len(entries):
        return value
    index = torch.tensor(entries)[None, :, None]
    if not bool(((index >= 0) & (index < value.shape[-1])).all()):
        return value
    return value.gather(-1, index.expand(*value.shape[:-1], -1))


def _bands_apart(value: Tensor, spec: StateSpec) -> Tensor:
    """A state of rows that were merged with bands as `spec` has it, [batch, bands, ...]."""
    bands = spec.shape[1] if len(spec.shape) > 1 else 1
    merged = value.ndim == len(spec.shape) - 1 and value.shape[1:] == spec.shape[2:]
    if not merged or not isinstance(bands, int) or value.shape[0] % bands:
        return value
    return torch.unflatten(value, 0, (-1, bands))


def reference(source: Source, inputs: Mapping[str, Tensor], *, states: bool = True) -> Reference:
    """Run `source` on whole sequences, `inputs` being [batch, time, ...] each.

    Code of its own that was found for operators when it was traced gives the outputs; of the
    operators, which run in a second pass, are the states.  Without `states` none is known.

    Raises:
        SourceError: the source takes other sizes alone.
    """
    if isinstance(source.body, ir.Model):
        arrays = {name: value.numpy() for name, value in inputs.items()}
        outputs = run_original(open_original(source), arrays)
        return Reference(outputs=outputs, precision="float32", cause="as its file has it", calls={})
    try:
        wide = {n: x.double() if x.is_floating_point() else x for n, x in inputs.items()}
        return _run(source, wide, Widened(source.module), states=states)
    except ParityError:
        raise
    except Exception as error:  # noqa: BLE001  a module that fixes its dtype inside runs as it is
        try:
            found = _run(source, inputs, contextlib.nullcontext(), states=states)
        except IntaglioError:
            raise
        except Exception as same:
            raise _does_not_run(source, inputs, same) from same
        return replace(found, cause=cause(found.precision, error))


def _does_not_run(source: Source, inputs: Mapping[str, Tensor], error: Exception) -> SourceError:
    rows, tokens = _sized(source, inputs, BATCH), _sized(source, inputs, TIME)
    sizes = f"{rows} rows of {tokens} tokens" if rows and tokens else "the inputs"
    hint = "Say which sizes it takes, as in --axes 'x:batchxtime=..100x8' for at most 100 tokens."
    if not (rows and tokens) and source.dynamic:
        # An index may reach beyond an axis that is free: the sizes of the example fit its values.
        shapes = {
            name: [
                axes[axis] if axis in axes and axis == 0 else size
                for axis, size in enumerate(value.shape)
            ]
            for name, value in source.inputs.items()
            for axes in (source.dynamic.get(name, {}),)
        }
        hint = f"To keep to the example's sizes, its first axes aside: {as_option(shapes)}."
    return SourceError(
        f"The model was traced, and does not run on {sizes} that the bundle is compared with: "
        f"{summary(error)}. {hint}"
    )


def _run(
    source: Source,
    inputs: Mapping[str, Tensor],
    precision: AbstractContextManager[Any],
    *,
    states: bool,
) -> Reference:
    module, tokens = source.module, _sized(source, inputs, TIME)
    calls: dict[Key, CaughtCall] = {}
    with precision:
        if states:
            outputs, calls = recorded(module, inputs, tokens)
        else:  # with nothing that watches, which loops of PyTorch's own refuse
            with as_written():
                outputs = name_outputs(module, module(**inputs), inputs)
    ran_in = precision_of(outputs.values())
    if states:
        with exchanged(source, module) as found:
            if found:
                with precision:
                    _, calls = recorded(module, inputs, tokens)
    return Reference(
        outputs={name: value.numpy() for name, value in outputs.items()},
        precision=ran_in,
        cause=cause(ran_in, None),
        # The code of a program is in one piece: its calls do not say which module they are of.
        calls=calls if states and not isinstance(module, fx.GraphModule) else {},
        rows=_sized(source, inputs, BATCH) or 0,
        caches=source.caches,
    )


def _sized(source: Source, inputs: Mapping[str, Tensor], wanted: str) -> int | None:
    """Tokens or rows of the inputs; None where none of them has such an axis."""
    sizes = (
        inputs[name].shape[axis] // (source.pace if wanted == TIME else 1)
        for name, axes in source.dynamic.items()
        for axis, symbol in axes.items()
        if symbol == wanted and name in inputs
    )
    return next(sizes, None)
