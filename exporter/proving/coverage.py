"""What a verification exercised, and in words what it did not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MORE = 4  # numbers in a line for people


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How far a bundle was tried.

    `tokens` is the longest run; `limit` the longest that the bundle takes, None for any; `beyond`
    the numbers that positions are computed with and that no run went past.  `drawn` tells of each
    integer input how many of its values occurred, and of how many; `compared` the values that the
    graph compares an input with and that did not occur.  `rows` says whether rows of unequal length
    were compared with each row alone, `restored` whether a saved state was taken up again; each is
    None where there is no such thing.  `portable` is how many tokens the portable graph ran for,
    None where it did not; `unknown` are states of which the source tells nothing, `graphs` those of
    the bundle that did not run.
    """

    tokens: int
    limit: int | None = None
    beyond: tuple[int, ...] = ()
    drawn: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    compared: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rows: bool | None = None
    restored: bool | None = None
    portable: int | None = None
    unknown: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()

    def gaps(self) -> list[str]:
        """What was not exercised, and the option that does."""
        found = []
        if self.beyond:
            numbers = _some(sorted(self.beyond))
            found.append(
                f"positions past {numbers}, with which the graph computes them "
                f"(--steps {max(self.beyond) + 2})"
            )
        for name, values in self.compared.items():
            found.append(f"the values {_some(values)} of {name!r}, which the graph looks for")
        for name, (seen, total) in self.drawn.items():
            if seen < total:
                found.append(f"{total - seen} of {total} values of {name!r} (--thorough)")
        if self.unknown:
            found.append(f"the states {_some(self.unknown)} beside the source, which has none such")
        if self.portable is None:
            found.append("the portable graph")
        if self.graphs:
            found.append(f"the graphs {_some(self.graphs)}")
        return found

    def words(self) -> str:
        """One sentence for people, empty where nothing is missing."""
        gaps = self.gaps()
        return f" Not tried: {'; '.join(gaps)}." if gaps else ""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "tokens": self.tokens,
            "limit": self.limit,
            "beyond": sorted(self.beyond),
            "drawn": {name: list(pair) for name, pair in self.drawn.items()},
            "compared": {name: list(values) for name, values in self.compared.items()},
            "rows": self.rows,
            "restored": self.restored,
            "portable": self.portable,
            "unknown": list(self.unknown),
            "graphs": list(self.graphs),
            "gaps": self.gaps(),
        }


def _some(numbers: Any) -> str:
    shown = [str(number) for number in numbers][:MORE]
    left = len(numbers) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "")
