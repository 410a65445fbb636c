"""What PyTorch assumed of sizes while it captured a model, beside their bounds.

A branch on an even height, or on two equal axes, goes into a program as one of its sides, and the
condition is noted beside it.  Each is tried at sizes where it does not hold: there the module
itself fails, or gives what the graph gives, or the graph is not the module.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from intaglio.exporter.sources.axes import Sizes, Span
from intaglio.exporter.sources.source import Source

TRIED = 9  # sizes of each axis
MOST = 12  # conditions that are tried


@dataclass(frozen=True)
class Condition:
    """A relation of sizes; `names` says what its symbols are called."""

    relation: Any
    names: Mapping[Any, str]

    def holds(self, sizes: Sizes) -> bool:
        """Whether it holds at `sizes`; where that cannot be said, it does."""
        values = {symbol: sizes[name] for symbol, name in self.names.items()}
        try:
            return bool(self.relation.subs(values))
        except (TypeError, ZeroDivisionError, ValueError):
            return True

    def broken(self, sizes: Sizes, spans: Mapping[str, Span]) -> Sizes | None:
        """Sizes near `sizes`, within their spans, at which it does not hold."""
        mine = list(dict.fromkeys(self.names.values()))
        choices = [list(_near(sizes[name], spans[name], sizes)) for name in mine]
        for chosen in product(*choices):
            tried = {**sizes, **dict(zip(mine, chosen, strict=True))}
            if not self.holds(tried):
                return tried
        return None

    def __str__(self) -> str:
        """The relation in the names of the axes."""
        relation = self.relation
        sides = getattr(relation, "lhs", None), getattr(relation, "rhs", None)
        text = f"{sides[0]} {relation.rel_op} {sides[1]}" if None not in sides else str(relation)
        for symbol, name in self.names.items():
            text = re.sub(rf"\b{symbol}\b", name, text)
        return re.sub(r"Mod\(([^(),]+), (\d+)\)", r"\1 % \2", text)


def _near(size: int, span: Span, sizes: Sizes) -> Iterator[int]:
    steps = (size + span.step * n for n in range(1, TRIED))
    for tried in (size, *steps, *sizes.values(), span.least, span.least + span.step, 2 * size + 1):
        if span.holds(tried):
            yield tried


def conditions(source: Source, program: ExportedProgram) -> list[Condition]:
    """The relations that the program was captured under, those of 0 and 1 left out."""
    holders = [node for node in program.graph.nodes if node.op == "placeholder"]
    specs = program.graph_signature.input_specs
    mine = [n for s, n in zip(specs, holders, strict=True) if s.kind is InputKind.USER_INPUT]
    names: dict[Any, str] = {}
    environment = None
    for name, node in zip(source.inputs, mine, strict=True):
        for axis, symbol in source.dynamic.get(name, {}).items():
            size = node.meta["val"].shape[axis]
            if not isinstance(size, int) and size.node.expr.is_symbol:
                names[size.node.expr] = symbol
                environment = size.node.shape_env
    found = []
    for guard in [] if environment is None else environment.guards:
        symbols: set[Any] = getattr(guard.expr, "free_symbols", set())
        if symbols and symbols <= names.keys() and not of_zero_or_one(guard.expr):
            found.append(Condition(guard.expr, {s: names[s] for s in symbols}))
    return found[:MOST]


def of_zero_or_one(relation: Any) -> bool:
    """Whether it only says that something is not 0 or 1, which other checks try."""
    ends = [end for end in relation.args if getattr(end, "is_Integer", False)]
    return relation.func.__name__ in ("Ne", "Unequality") and any(
        int(end) in (0, 1) for end in ends
    )
