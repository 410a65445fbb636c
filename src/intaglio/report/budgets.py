"""The page of a search for a budget: the best subnet of each size, and the same bits everywhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intaglio.whole_files import output

from . import charts
from .document import document
from .html import Html, element, table

AXES = {
    "bits": ("bits", "bits a weight"),
    "MB": ("bytes", "bytes of the model"),
    "ms": ("ms", "milliseconds of a step"),
}
"""What a unit of budgets counts: the key of a row, and its words."""


def write_page(found: Mapping[str, Any], path: Path) -> None:
    """Write the page of a search, as `SubnetReport.to_json` tells it, to `path`."""
    with output(path) as draft:
        draft.write_text(page(found), encoding="utf-8")


def page(found: Mapping[str, Any]) -> str:
    """The page of a search."""
    key, words = AXES[found["budget"].lstrip("0123456789.e+-")]
    names = {"pareto": "best that was tried", "uniform": "the same bits in all layers"}
    series = {
        name: ([row[key] for row in found[which]], [row["loss"] for row in found[which]])
        for which, name in names.items()
    }
    title = f"Subnets, {found['budget']} at most"
    return document(
        title,
        element("h1", title),
        element("h2", "Loss by size"),
        charts.sizes(series, words),
        element("h2", "The best of each size"),
        _rows(found),
        element("h2", "Bits of the one that was taken"),
        table(["layer", "bits"], [[name, bits] for name, bits in found["bits"].items()]),
    )


def _rows(found: Mapping[str, Any]) -> Html:
    timed = "ms" in found["taken"]
    rows: list[list[object]] = [
        [
            f"{row['bits']:.3f}",
            f"{row['bytes']:,}",
            *([f"{row['ms']:.4g}"] if timed else []),
            f"{row['loss']:.4f}",
        ]
        for row in found["pareto"]
    ]
    return table(["bits a weight", "bytes", *(["ms"] if timed else []), "loss"], rows)
