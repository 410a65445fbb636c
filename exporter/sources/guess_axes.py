"""Which axes of a module's example inputs are free, found by running it at other sizes.

A guess is a layout that the module ran with; the most general of five kinds is taken: sequences
[batch, time, ...]; some of them, beside inputs without time, which are given once; [batch, ...,
time], as of signals; a batch alone, as of pictures and rows of a table; and axes each on its own,
as of the nodes and edges of a graph.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.quiet import quiet
from intaglio.state import BATCH, TIME

from .axes import Sizes, Span, as_option
from .drawing import tiled

EXAMPLE = {BATCH: 3, TIME: 7}
"""Odd primes: a size of 1, or one that a dimension of the module has, could be frozen."""

LARGER = (16, 32, 64, 128, 224, 512)
"""Sizes that are tried where a model takes neither the usual ones nor those of an example."""

Shape = tuple[int | str, ...]
Shapes = dict[str, Shape]


def guess_shapes(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    known: Mapping[str, Shape],
    spans: Mapping[str, Span],
) -> tuple[Shapes, dict[str, Span], tuple[str, ...]]:
    """The dimensions of each input, the sizes that free axes take, and notes on what was guessed.

    Dimensions in `known` and sizes in `spans` are kept as they are.
    """
    steps = dict(spans)
    if known.keys() >= examples.keys():
        return {name: known[name] for name in examples}, steps, ()
    for tried, kept in _candidates(examples, known):
        if _serves(module, examples, tried, kept):
            if all(shape[1:2] == (TIME,) for shape in tried.values() if len(shape) > 1):
                return tried, steps, ()
            found = tried
            if _sequences(tried):
                found = _with_lengths(module, examples, tried, known, kept)
            return found, steps, (_said(found),)
        if TIME not in steps and (step := _step(module, examples, tried, kept)):
            steps[TIME] = Span(step, None, step)
            return tried, steps, (_said(tried, step),)
    shapes = _each_alone(module, examples, known)
    return shapes, steps, (_said(shapes),)


def _step(
    module: nn.Module, examples: Mapping[str, Tensor], shapes: Shapes, kept: Collection[str]
) -> int | None:
    """What the number of tokens has to be a multiple of; None where multiples do not serve."""
    size = _sizes(examples, shapes).get(TIME, 0)
    if size < 4 or not _serves(module, examples, shapes, kept, size):
        return None
    divisors = (n for n in range(2, size + 1) if size % n == 0)
    return next((n for n in divisors if _serves(module, examples, shapes, kept, n)), None)


def _sequences(shapes: Shapes) -> bool:
    return any(shape[1:2] == (TIME,) for shape in shapes.values())


def _said(shapes: Shapes, step: int = 1) -> str:
    words = f"{TIME}={step}..:{step}" if step > 1 else TIME
    typed = {
        name: [words if dim == TIME else dim for dim in shape] for name, shape in shapes.items()
    }
    return (
        f"The free axes were found by running at other sizes: {as_option(typed)}. To free others, "
        "or to name them, type that with names in the place of sizes."
    )


def _candidates(
    examples: Mapping[str, Tensor], known: Mapping[str, Shape]
) -> Iterator[tuple[Shapes, Collection[str]]]:
    """Layouts, the most general first, and the axes that outputs have to have with each.

    Where some inputs alone are sequences, those are that outputs have a token for each token of.
    """
    rest = {name: x for name, x in examples.items() if name not in known}
    some = [_sequences_of(length) for length in _lengths(rest.values())]
    layouts: tuple[tuple[Callable[[Tensor], Shape], Collection[str]], ...] = (
        (lambda x: (BATCH, TIME, *x.shape[2:])[: x.ndim], {BATCH}),
        *((layout, {BATCH, TIME}) for layout in some),
        (
            lambda x: (BATCH, x.shape[1], TIME) if x.ndim == 3 else (BATCH, *x.shape[1:])[: x.ndim],
            {BATCH},
        ),
        *((layout, {BATCH}) for layout in some),
        (lambda x: (BATCH, *x.shape[1:])[: x.ndim], {BATCH}),
    )
    for layout, kept in layouts:
        shapes = {name: known.get(name) or layout(x) for name, x in examples.items()}
        if _consistent(examples, shapes):
            yield shapes, kept
    if rest:  # inputs that have no batch of their own
        rows = max((x.shape[0] for x in rest.values() if x.ndim), default=0)
        shapes = {
            name: known.get(name)
            or ((BATCH, *x.shape[1:]) if x.ndim and x.shape[0] == rows else tuple(x.shape))
            for name, x in examples.items()
        }
        if all(x.ndim == 0 or x.shape[0] in (1, rows) for x in rest.values()):
            yield shapes, {BATCH}


def _lengths(examples: Iterable[Tensor]) -> list[int]:
    """Sizes of second axes: what time could be."""
    return list(dict.fromkeys(int(x.shape[1]) for x in examples if x.ndim > 1))


def _sequences_of(length: int) -> Callable[[Tensor], Shape]:
    """Inputs whose second axis is as long are sequences, the others are given once."""

    def layout(x: Tensor) -> Shape:
        sequence = x.ndim > 1 and x.shape[1] == length
        return (BATCH, TIME, *x.shape[2:]) if sequence else (BATCH, *x.shape[1:])[: x.ndim]

    return layout


def _with_lengths(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    shapes: Shapes,
    known: Collection[str],
    kept: Collection[str],
) -> Shapes:
    """Free the second axes of what is given once beside sequences, as of an encoder's results.

    Those of one size together where the module takes that, else each alone.
    """
    once = [
        name
        for name, shape in shapes.items()
        if name not in known and len(shape) > 1 and TIME not in shape
    ]
    for size in dict.fromkeys(shapes[name][1] for name in once):
        alike = [name for name in once if shapes[name][1] == size]
        for names in (alike, *([name] for name in alike)):
            tried = _with(shapes, [(name, 1) for name in names], f"{names[0]}_1")
            if _serves(module, examples, tried, kept):
                shapes = tried
                break
    return shapes


def _consistent(examples: Mapping[str, Tensor], shapes: Shapes) -> bool:
    """Whether each symbol has one size."""
    sizes: dict[str, int] = {}
    return all(
        not isinstance(dim, str) or sizes.setdefault(dim, size) == size
        for name, x in examples.items()
        for dim, size in zip(shapes[name], x.shape, strict=True)
    )


def _serves(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    shapes: Shapes,
    kept: Collection[str],
    step: int = 1,
) -> bool:
    """Whether the module runs at other sizes, and all outputs have the free axes of `kept`.

    The number of tokens grows by a prime multiple of `step`.
    """
    sizes = _sizes(examples, shapes)
    if not sizes:
        return False
    grown = _apart(sizes)
    if step > 1:
        grown[TIME] = sizes[TIME] + 5 * step
    outputs = _outputs(module, examples, shapes, grown)
    if outputs is None:
        return False
    wanted = [grown[symbol] for symbol in kept if symbol in sizes]
    return all(x.ndim == 0 or size in x.shape for x in outputs for size in wanted)


def _sizes(examples: Mapping[str, Tensor], shapes: Shapes) -> dict[str, int]:
    return {
        dim: size
        for name, x in examples.items()
        for dim, size in zip(shapes[name], x.shape, strict=True)
        if isinstance(dim, str)
    }


def _apart(sizes: Sizes) -> dict[str, int]:
    """Larger sizes, prime and all different: no product or multiple of one is another."""
    found: dict[str, int] = {}
    for symbol, size in sizes.items():
        bigger = size + 3
        while not _prime(bigger) or bigger in found.values():
            bigger += 1
        found[symbol] = bigger
    return found


def _prime(number: int) -> bool:
    return number > 1 and all(number % n for n in range(2, int(number**0.5) + 1))


def _outputs(
    module: nn.Module, examples: Mapping[str, Tensor], shapes: Shapes, sizes: Sizes
) -> list[Tensor] | None:
    """What the module gives at `sizes`, None where it does not run."""
    inputs = {
        name: tiled(x, [sizes[dim] if isinstance(dim, str) else dim for dim in shapes[name]])
        for name, x in examples.items()
    }
    try:
        with torch.no_grad(), quiet():
            return list(_tensors(module(**inputs)))
    except Exception:  # noqa: BLE001  whatever it is, the sizes are not taken
        return None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for each in (
        value.values() if isinstance(value, Mapping)
        else value if isinstance(value, list | tuple) else ()
    ):  # fmt: skip
        yield from _tensors(each)


def _each_alone(
    module: nn.Module, examples: Mapping[str, Tensor], known: Mapping[str, Shape]
) -> Shapes:
    """Free each axis that can change alone, or with all others of its size."""
    shapes: Shapes = {n: known.get(n) or tuple(x.shape) for n, x in examples.items()}
    for name, x in examples.items():
        for axis, size in enumerate(x.shape):
            picture = x.ndim > 3 and axis > 0  # each of its axes would cost, and few need it
            if isinstance(shapes[name][axis], str) or name in known or picture:
                continue
            symbol = _symbol(name, axis, shapes)
            alike = [
                (other, place)
                for other, y in examples.items()
                for place, n in enumerate(y.shape)
                if n == size and not isinstance(shapes[other][place], str)
            ]
            for places in ([(name, axis)], alike):
                tried = _with(shapes, places, symbol)
                grown = _apart(_sizes(examples, tried))
                if len({grown[symbol], size}) == 2 and (
                    _outputs(module, examples, tried, grown) is not None
                ):
                    shapes = tried
                    break
    return shapes


def _with(shapes: Shapes, places: Sequence[tuple[str, int]], symbol: str) -> Shapes:
    return {
        name: tuple(symbol if (name, axis) in places else dim for axis, dim in enumerate(shape))
        for name, shape in shapes.items()
    }


def _symbol(name: str, axis: int, shapes: Shapes) -> str:
    taken = {dim for shape in shapes.values() for dim in shape}
    return name if axis == 0 and name not in taken else f"{name}_{axis}"


def example_sizes(
    run: Callable[..., Any],
    sample: Callable[[Sizes, int], dict[str, Tensor]],
    own: Sizes,
    spans: Mapping[str, Span],
) -> dict[str, int]:
    """Sizes at which a model runs, at least 2 each, and different where it takes them so.

    Args:
        run: the model, which takes its inputs by name.
        sample: draws its inputs.
        own: the sizes that the user's examples have.
        spans: the sizes that were asked for.
    """

    def runs(sizes: Sizes) -> bool:
        try:
            with torch.no_grad(), quiet():
                run(**sample(sizes, 0))
        except Exception:  # noqa: BLE001  whatever it is, the sizes are not taken
            return False
        return True

    def fitted(sizes: Sizes) -> dict[str, int]:  # two steps, since one looks like a constant
        known = {s: spans.get(s, Span()) for s in sizes}
        return {
            s: known[s].nearest(max(n, known[s].least + known[s].step)) for s, n in sizes.items()
        }

    usual = {symbol: EXAMPLE.get(symbol, max(size, 2)) for symbol, size in own.items()}
    own = {symbol: max(size, 2) for symbol, size in own.items()}
    rows = {symbol: size for symbol, size in usual.items() if symbol == BATCH}
    tries = [fitted(usual), fitted({**own, **rows}), fitted(own)]
    tries += [fitted({**dict.fromkeys(own, size), **rows}) for size in LARGER]
    found = next((sizes for sizes in tries if runs(sizes)), fitted(own))
    for symbol in found:
        others = [n for s, n in found.items() if s != symbol]
        if found[symbol] not in others:
            continue
        for more in (1, 2, 4, 8, 16, 32):
            span = spans.get(symbol, Span())
            size = found[symbol] + more * span.step
            if span.holds(size) and size not in others and runs({**found, symbol: size}):
                found[symbol] = size
                break
    return found


def by_place(name: str, dims: Sequence[int | str], names: dict[str, str]) -> Shape:
    """The dimensions of an input of a graph, whose free ones have symbols of the file's own.

    Args:
        name: of the input.
        dims: its dimensions.
        names: what the symbols of the inputs before are called; those of this one are added.
    """
    rows = bool(dims) and isinstance(dims[0], str)
    later = [axis for axis, dim in enumerate(dims) if axis and isinstance(dim, str)]
    for axis, dim in enumerate(dims):
        if not isinstance(dim, str) or dim in names:
            continue
        wanted = dim if dim.isidentifier() else f"{name}_{axis}"
        if axis == 0:
            wanted = BATCH
        elif rows and (axis == 1 or (len(dims) == 3 and later == [2])):
            wanted = TIME
        names[dim] = wanted if wanted not in names.values() else f"{name}_{axis}"
    return tuple(dim if isinstance(dim, int) else names[dim] for dim in dims)
