"""A source as it is: its outputs for given inputs, and at which sizes it runs at all."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from intaglio.exporter.sources.axes import Sizes, Span
from intaglio.exporter.sources.outputs import name_outputs
from intaglio.exporter.sources.source import Source
from intaglio.passes import evaluate
from intaglio.quiet import quiet

Run = Callable[[Mapping[str, Tensor]], dict[str, npt.NDArray[Any]]]
STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 64)  # in which an axis may have to grow
MORE = (1, 2, 3, 5, 6, 11)  # steps beyond the example that an axis is tried at


def runner(source: Source) -> Run:
    """What gives the outputs of `source` by name."""
    if isinstance(source.body, ir.Model):
        engine = evaluate.session(source.body)
        names = [output.name for output in engine.get_outputs()]

        def graph(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
            feeds = {name: value.numpy() for name, value in inputs.items()}
            return dict(zip(names, engine.run(names, feeds), strict=True))

        return graph

    def module(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        with as_written(), quiet():
            value = source.module(**inputs)
            return {n: x.numpy() for n, x in name_outputs(source.module, value, inputs).items()}

    return module


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Run modules without gradients, and without the shortcut of PyTorch's encoder layers.

    The shortcut gives zeros for what padding hides, where the layers as they are written do not.
    """
    shortcut = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(shortcut)


def runs_at(source: Source, run: Run, sizes: Sizes) -> bool:
    """Whether the source itself runs on inputs of `sizes`."""
    try:
        run(source.draw(sizes, 0))
    except Exception:  # noqa: BLE001  whatever it raises, it does not take them
        return False
    return True


def taken_sizes(source: Source, run: Run, spans: Mapping[str, Span]) -> dict[str, Span]:
    """The spans, in the steps and from the least size at which the source runs.

    Each axis is tried with all others as in the example; what the user asked for stays.
    """
    found = {}
    for symbol, span in spans.items():
        if symbol in source.spans:
            found[symbol] = span
            continue
        example = source.sizes[symbol]

        def runs(size: int, symbol: str = symbol) -> bool:
            return runs_at(source, run, {symbol: size})

        step = next((n for n in STEPS if runs(example + n) and runs(example + 2 * n)), 1)
        first = span.least + (example - span.least) % step
        low, high = -1, (example - first) // step  # in steps: fails, or is below all, and runs
        if runs(first):
            high = 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if runs(first + middle * step) else (middle, high)
        found[symbol] = Span(first + high * step, span.most, step)
    return found


def several(source: Source, spans: Mapping[str, Span]) -> Iterator[Sizes]:
    """Sizes to try, the first ones the farthest apart; each within its span."""
    symbols = list(spans)
    if not symbols:
        yield {}
        return
    least = {symbol: spans[symbol].least for symbol in symbols}
    example = dict(source.sizes)
    yield least
    yield _moved(example, spans, [MORE[(2 + i) % len(MORE)] for i in range(len(symbols))])
    for place in range(min(len(symbols), 4)):
        one = symbols[place]
        yield {**example, one: least[one]}
        more = [0] * len(symbols)
        more[place] = MORE[3 + place % 3]
        yield _moved({**least, one: example[one]}, spans, more)
    yield _moved(example, spans, [MORE[i % len(MORE)] for i in range(len(symbols))])
    largest = max(example[symbol] for symbol in symbols)
    yield {symbol: spans[symbol].nearest(largest) for symbol in symbols}


def _moved(sizes: Sizes, spans: Mapping[str, Span], more: Sequence[int]) -> dict[str, int]:
    """Each size so many steps on, as far as its span goes."""
    return {
        symbol: span.nearest(sizes[symbol] + steps * span.step)
        for (symbol, span), steps in zip(spans.items(), more, strict=True)
    }


def in_words(sizes: Sizes) -> str:
    """Sizes in a sentence."""
    return ", ".join(f"{symbol} = {size}" for symbol, size in sizes.items()) or "the example's size"


def arguments(program: ExportedProgram, inputs: Mapping[str, Tensor]) -> Iterator[Any]:
    """What the nodes of `program` are run with: weights as they are, and `inputs` in their order.

    Buffers are copies, since a program may write to them.
    """
    users = iter(inputs.values())
    for spec in program.graph_signature.input_specs:
        if spec.target is None:
            yield next(users)
        else:
            given = program.state_dict.get(spec.target, program.constants.get(spec.target))
            yield given.clone() if spec.kind is InputKind.BUFFER and given is not None else given
