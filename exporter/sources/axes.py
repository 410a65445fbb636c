"""Free axes by name, as users write them: ``batchx3xheight=64..512:32xwidth``.

A word is a size, a name, or a name with the sizes that it takes: ``name=LEAST..MOST:STEP``, of
which all but the name may be left out.  Behind the last word of an input of integers, ``<nodes`` or
``<100`` bounds its values: they pick entries of an axis, or of a table.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from intaglio.errors import OptionError
from intaglio.exporter.options.layout_text import Axes
from intaglio.state import CAPACITY, PAST

Sizes = Mapping[str, int]

RANGE = re.compile(r"(?P<least>\d+)?\.\.(?P<most>\d+)?(?::(?P<step>\d+))?")


@dataclass(frozen=True)
class Span:
    """Sizes of a free axis: from `least` to `most`, None for any, in steps from `least`.

    An axis may be empty where that is said: its `least` is then 0.
    """

    least: int = 1
    most: int | None = None
    step: int = 1

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Read ``64..512:32``.

        Raises:
            OptionError: if it is not of that form, or holds no size.
        """
        found = RANGE.fullmatch(text)
        if found is None:
            raise OptionError(f"{where}: {text!r} is not LEAST..MOST:STEP, as 64..512:32.")
        step = int(found["step"] or 1)
        least = int(found["least"] or step)
        most = None if found["most"] is None else int(found["most"])
        if not step or (most is not None and most < max(least, 1)):
            raise OptionError(f"{where}: {text!r} holds no size; LEAST..MOST:STEP, as 64..512:32.")
        return cls(least, most, step)

    def holds(self, size: int) -> bool:
        """Whether an axis may have `size`."""
        fits = size >= self.least and (self.most is None or size <= self.most)
        return fits and (size - self.least) % self.step == 0

    def nearest(self, size: int) -> int:
        """The size of the span that is nearest to `size` from below, or the least."""
        bounded = size if self.most is None else min(size, self.most)
        return self.least + max(bounded - self.least, 0) // self.step * self.step

    def within(self, least: int, most: int) -> Self:
        """The sizes of the span from `least` to `most`; its own least where there is none."""
        steps = max(0, -(-(least - self.least) // self.step))
        low = self.least + steps * self.step
        return replace(self, least=low, most=max(low, self.nearest(most)))

    def __str__(self) -> str:
        """As `parse` reads it."""
        most = "" if self.most is None else str(self.most)
        return f"{self.least}..{most}" + (f":{self.step}" if self.step > 1 else "")


@dataclass(frozen=True, kw_only=True)
class InputAxes:
    """What ``--axes`` says of one input: its dimensions, and the bound of its values."""

    shape: tuple[int | str, ...]
    below: int | str | None = None


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """What ``--axes`` says: a layout for each input that it names, and spans by symbol."""

    inputs: Mapping[str, InputAxes] = field(default_factory=dict)
    spans: Mapping[str, Span] = field(default_factory=dict)

    @classmethod
    def of(cls, axes: Axes) -> Self:
        """Read the words of each input.

        Raises:
            OptionError: if a word is malformed, or two give a name different sizes.
        """
        inputs: dict[str, InputAxes] = {}
        spans: dict[str, Span] = {}
        for name, words in axes.items():
            where = f"--axes {in_words(name, words)}"
            shape: list[int | str] = []
            below: int | str | None = None
            for word in words:
                if isinstance(word, int):
                    shape.append(word)
                    continue
                text, _, bound = word.partition("<")
                below = (int(bound) if bound.isdecimal() else bound) if bound else below
                if not text and bound:  # of a scalar, which has no dimensions
                    continue
                symbol, _, sizes = text.partition("=")
                if not symbol.isidentifier():
                    raise OptionError(f"{where}: {word!r} is no size and no name of an axis.")
                if symbol in (CAPACITY, PAST):
                    raise OptionError(
                        f"{where}: {symbol} is what the tokens in a cache are called; give the "
                        f"axis another name, as {symbol}_."
                    )
                if sizes:
                    span = Span.parse(sizes, where)
                    if spans.setdefault(symbol, span) != span:
                        raise OptionError(f"{where}: {symbol} is {spans[symbol]} elsewhere.")
                shape.append(symbol)
            inputs[name] = InputAxes(shape=tuple(shape), below=below)
        return cls(inputs=inputs, spans=spans)


def in_words(name: str, shape: Iterable[int | str]) -> str:
    """An input as ``--axes`` takes it: commas where a name holds an x."""
    words = [str(dim) for dim in shape]
    return f"{name}:{(',' if any('x' in word for word in words) else 'x').join(words)}"


def as_option(shapes: Mapping[str, Sequence[int | str]]) -> str:
    """All inputs as they are typed."""
    return " ".join(f"--axes '{in_words(name, shape)}'" for name, shape in shapes.items())
