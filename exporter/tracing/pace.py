"""How many entries along time make one token of a step, where a model changes the rate of a stream.

A model that moves over time in strides, pools, or stacks frames gives p results for each q entries.
Run at L and at 2 L entries, where all strides divide L, each of its values grows by L p / q along
some axis; the least common multiple of all q is the pace: a step takes a multiple of it, and every
value inside has a whole number of entries for each token.  The runs are on tensors without
contents, and made only where something in the model can change a rate.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from intaglio.exporter.sources.axes import Sizes
from intaglio.exporter.sources.source import Source
from intaglio.quiet import quiet
from intaglio.state import TIME

from .running import as_written

Shape = tuple[int, ...]

LENGTHS = (48, 240, 840, 5040)  # with many divisors, where strides do not tell one
MOST = 2**16
MOVES = ("pool", "unfold", "im2col", "upsample", "stft", "as_strided")


def paced(source: Source) -> Source:
    """`source` with as many entries a token as its strides ask for; itself where that is one."""
    pace = find_pace(source)
    if pace == 1:
        return source
    note = f"A token is {pace} entries along time: steps take a multiple of {pace}."
    return replace(at_pace(source, pace), notes=(*source.notes, note))


def at_pace(source: Source, pace: int) -> Source:
    """`source` counted in tokens of `pace` entries along time each."""
    if pace == source.pace:
        return source
    drawn = source.sample

    def sample(sizes: Sizes, seed: int) -> dict[str, Tensor]:
        return drawn({**sizes, TIME: sizes[TIME] * pace}, seed)

    return replace(source, pace=pace, sample=sample)


def find_pace(source: Source) -> int:
    """Entries along time that make a token of `source`; 1 where it cannot be told."""
    if not isinstance(source.body, nn.Module) or TIME not in source.symbols:
        return 1
    seen = _Moves(source.sizes[TIME])
    try:
        with quiet(), as_written(), seen:
            source.module(**source.inputs)
    except Exception:  # noqa: BLE001  it may take multiples of some number alone
        seen.moves = True
    if not seen.moves:
        return 1
    strides = math.prod(seen.strides)
    known = [strides] if 1 < strides <= MOST else []
    found: list[int] = []
    for length in (*known, *LENGTHS):
        if found and length == LENGTHS[-1]:
            break
        once, twice = (_shapes(source, n) for n in (length, 2 * length))
        if once is None or twice is None:
            continue
        if len(once) != len(twice):  # a loop in Python, which takes as long as it is long
            return 1
        pace = _pace(once, twice, length)
        if _grows_evenly(source, pace):
            found.append(pace)
            if pace == 1 or not seen.cuts:
                break
    return min(found, default=1)  # where an end is cut off, it may grow evenly by more as well


def _pace(once: list[Shape], twice: list[Shape], length: int) -> int:
    """The pace by the values of runs of `length` entries and of twice as many."""
    grown = zip(once, twice, strict=True)
    return math.lcm(*(_parts(a, b, length) for a, b in grown if len(a) == len(b)), 1)


def _parts(once: Shape, twice: Shape, length: int) -> int:
    """The denominator of how one value grows with the length."""
    found = (Fraction(b - a, length).denominator for a, b in zip(once, twice, strict=True))
    return math.lcm(*found, 1)


def _grows_evenly(source: Source, pace: int) -> bool:
    """Whether each value grows by as much with each token, to a square at most."""
    runs = [_shapes(source, pace * tokens) for tokens in (2, 3, 4, 5)]
    known = [shapes for shapes in runs if shapes is not None]
    if len(known) < len(runs) or len({len(shapes) for shapes in known}) > 1:
        return False
    for shapes in zip(*known, strict=True):
        for sizes in zip(*shapes, strict=True) if len({len(s) for s in shapes}) == 1 else ():
            a, b, c, d = sizes
            if d - 3 * c + 3 * b - a:  # the third difference, 0 for squares: pairs of tokens
                return False
    return True


def _shapes(source: Source, length: int) -> list[Shape] | None:
    """The shapes of all values in a run of `length` entries; None where it does not run."""
    seen = _Shapes()
    examples = source.inputs
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), quiet(), as_written():
            inputs = {
                name: torch.empty(
                    [
                        length if axes.get(axis) == TIME else size
                        for axis, size in enumerate(examples[name].shape)
                    ],
                    dtype=examples[name].dtype,
                )
                for name, axes in ((n, source.dynamic.get(n, {})) for n in examples)
            }
            with seen:
                source.module(**inputs)
    except Exception:  # noqa: BLE001  whatever it raises, it does not take so many
        return None
    return seen.shapes


class _Shapes(TorchFunctionMode):
    """Notes the shapes of all results; a layer that runs over tokens is one call."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[Shape] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types  # part of the protocol
        result = func(*args, **(kwargs or {}))
        self.shapes += [tuple(x.shape) for x in tree_leaves(result) if isinstance(x, Tensor)]
        return result


class _Moves(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether something may change a rate, the strides of what does, and whether it cuts."""

    supports_higher_order_operators = True  # or PyTorch's scans raise

    def __init__(self, tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moves = False
        self.cuts = False
        self.strides: list[int] = []
        self._tokens = tokens
        self._compiled = False

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        if self._compiled:  # under a mode, which without it would be compiled no more
            torch.compiler.reset()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types  # part of the protocol
        self._compiled = self._compiled or isinstance(func, HigherOrderOperator)
        result = func(*args, **(kwargs or {}))
        self.moves = self._may_move(str(func), args, result) or self.moves
        return result

    def _may_move(self, name: str, args: tuple[Any, ...], result: Any) -> bool:
        if "convolution" in name:
            self.strides += [] if args[6] else [int(each) for each in args[3]]
            return any(each > 1 for each in args[3])
        if "slice" in name and len(args) > 4:
            moves = bool(args[4] > 1 and args[0].shape[args[1]] >= self._tokens)
            self.strides += [int(args[4])] if moves else []
            return moves
        if "slice" in name and len(args) > 1 and args[0].shape[args[1]] == self._tokens:
            # What is left may be whole groups of entries, of which the example may have one.
            cuts = bool(1 < result.shape[args[1]] < self._tokens)
            self.cuts = self.cuts or cuts
            return cuts
        if "pool" in name and "adaptive" not in name and len(args) > 1:
            self.strides += map(int, args[2] if len(args) > 2 and args[2] else args[1])
            return True
        if "view" in name or "reshape" in name:
            return isinstance(result, Tensor) and self._splits(args[0], result)
        return any(word in name for word in MOVES)

    def _splits(self, given: Tensor, made: Tensor) -> bool:
        """Whether an axis as long as the sequence is taken apart, or gets more entries."""
        before = list(accumulate(given.shape, operator.mul))
        after = set(accumulate(made.shape, operator.mul))
        for at, size in enumerate(given.shape):
            begins = before[at] // max(size, 1)
            if size == self._tokens and (
                before[at] not in after or any(begins < end < before[at] for end in after)
            ):
                return True
        return False
