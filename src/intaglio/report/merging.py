"""The page of a merge: the loss along the line between two models, before matching and after."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intaglio.whole_files import output

from . import charts
from .document import document
from .html import Html, element, table


def write_page(found: Mapping[str, Any], path: Path) -> None:
    """Write the page of a merge, as `MergeReport.to_json` tells it, to `path`."""
    with output(path) as draft:
        draft.write_text(page(found), encoding="utf-8")


def page(found: Mapping[str, Any]) -> str:
    """The page of a merge."""
    title = f"Merge of {', '.join(found['models'])}"
    parts = [element("h1", title)]
    if found["paths"]:
        series = {name: (p["t"], p["loss"]) for name, p in found["paths"].items()}
        parts += [element("h2", "Loss along the path"), charts.path_curve(series)]
    parts += [element("h2", "Nearness"), _nearness(found), element("h2", "Losses"), _losses(found)]
    return document(title, *parts)


def _nearness(found: Mapping[str, Any]) -> Html:
    rows: list[list[object]] = [
        [name, what, f"{each['before']:.4g}", f"{each['after']:.4g}"]
        for name, *pair in zip(
            found["models"][1:], found["distance"], found["alignment"], strict=True
        )
        for what, each in zip(("distance", "alignment of leading directions"), pair, strict=True)
    ]
    rows += (
        [
            [
                "",
                "barrier",
                *(f"{found['paths'][each]['barrier']:.4g}" for each in ("before", "after")),
            ]
        ]
        if found["paths"]
        else []
    )
    return table(["with", "", "before", "after"], rows)


def _losses(found: Mapping[str, Any]) -> Html:
    names = [*found["models"], "merged"]
    rows: list[list[object]] = [
        [
            name,
            f"{each['loss']:.4f}",
            "-" if each["accuracy"] is None else f"{each['accuracy']:.4f}",
        ]
        for name, each in zip(names, found["losses"], strict=False)
    ]
    return table(["model", "loss", "accuracy"], rows)
