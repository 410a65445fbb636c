"""Charts as SVG that goes into a page: its colours are the page's, light and dark."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from intaglio.runtime.plain_text import one_line
from intaglio.runtime.profile.report import Phase, ProfileReport, Ratio

from .html import Html, text

# Colours that stand for the page's own; the page's styles define the names.
_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
SERIES = 6
_SERIES = [f"#0a0a0{index}" for index in range(SERIES)]
_NAMES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--line"} | {
    colour: f"--series-{index}" for index, colour in enumerate(_SERIES)
}
_STYLE: dict[Any, Any] = {  # matplotlib's types list every key
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 2,
    "lines.markersize": 5,
}


def distribution(report: ProfileReport, phase: Phase) -> Html:
    """Histograms of the latencies of one phase, medians marked."""
    found = [(i, t) for i, entry in enumerate(report.measured) if (t := entry.timing(phase))]
    times = [np.asarray(timing.seconds) * 1e3 for _, timing in found]
    low = min(values.min() for values in times)
    high = max(np.percentile(values, 99.5) for values in times)
    bins = np.geomspace(low * 0.98, max(high, low * 1.1) * 1.02, 60)
    with _figure(f"Distribution of latencies, {phase}", (4.6, 2.5)) as (axes, svg):
        for (index, timing), values in zip(found, times, strict=True):
            colour, shares = _SERIES[index % SERIES], np.full(len(values), 100 / len(values))
            options: dict[str, Any] = {"bins": bins, "weights": shares, "color": colour}
            axes.hist(values, histtype="stepfilled", alpha=0.25, **options)
            axes.hist(values, histtype="step", linewidth=1.4, **options)
            axes.axvline(timing.median * 1e3, color=colour, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_xscale("log")
        _plain_ticks(axes, "x")
        axes.set_xlabel("latency, ms")
        axes.set_ylabel("% of calls")
        axes.grid(visible=False, axis="x")
    return Html("".join(svg))


def context_curve(report: ProfileReport) -> Html:
    """Median step time against the context, from the 10th to the 90th percentile."""
    with _figure("Step time against context", (4.6, 2.8)) as (axes, svg):
        for index, entry in enumerate(report.measured):
            steps = [timing for timing in entry.timings if timing.phase.kind == "step"]
            contexts = [timing.phase.tokens for timing in steps]
            colour = _SERIES[index % SERIES]
            axes.plot(contexts, [t.median * 1e3 for t in steps], color=colour, marker="o")
            low, high = ([t.percentile(q) * 1e3 for t in steps] for q in (10, 90))
            axes.fill_between(contexts, low, high, color=colour, alpha=0.15, linewidth=0)
        _context_axes(axes, report)
        axes.set_ylabel("ms per step")
    return Html("".join(svg))


def state_curve(report: ProfileReport) -> Html:
    """Bytes of the carried states against the context."""
    with _figure("Bytes of states against context", (4.6, 2.8)) as (axes, svg):
        for index, entry in enumerate(report.measured):
            steps = [t for t in entry.timings if t.phase.kind == "step" and t.states]
            sizes = [(t.states or 0) / 1e6 for t in steps]
            colour = _SERIES[index % SERIES]
            axes.plot([t.phase.tokens for t in steps], sizes, color=colour, marker="o")
        _context_axes(axes, report)
        axes.set_ylabel("MB of states")
    return Html("".join(svg))


def path_curve(series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Html:
    """Losses by how far a model lies from one to another, a line for each series by name."""
    with _figure("Loss between two models", (4.6, 2.8)) as (axes, svg):
        for index, (name, (places, losses)) in enumerate(series.items()):
            axes.plot(places, losses, color=_SERIES[index % SERIES], marker="o", label=name)
        axes.set_xlabel("from the first model to the second")
        axes.set_ylabel("loss")
        axes.legend(frameon=False)
    return Html("".join(svg))


def sizes(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], words: str) -> Html:
    """Losses by what models take, which `words` names, a line for each series by name."""
    with _figure("Loss by size", (4.6, 2.8)) as (axes, svg):
        for index, (name, (places, losses)) in enumerate(series.items()):
            axes.plot(places, losses, color=_SERIES[index % SERIES], marker="o", label=name)
        axes.set_xlabel(words)
        axes.set_ylabel("loss")
        axes.legend(frameon=False)
    return Html("".join(svg))


def comparison(ratios: Sequence[Ratio], names: Sequence[str]) -> Html:
    """Ratios to the first contestant, median and quartiles of pairs."""
    height = 0.9 + 0.34 * len(ratios)
    with _figure("Latency against the first", (4.6, height)) as (axes, svg):
        for row, ratio in enumerate(ratios):
            colour = _SERIES[names.index(ratio.name) % SERIES]
            axes.plot([ratio.low, ratio.high], [row, row], color=colour, linewidth=3, alpha=0.45)
            axes.plot([ratio.ratio], [row], color=colour, marker="o", markersize=7)
        axes.axvline(1, color=_MUTED, linewidth=1)
        axes.set_xscale("log")
        _plain_ticks(axes, "x")
        axes.margins(x=0.12)
        phases = [str(ratio.phase) for ratio in ratios]
        rows = {name: [i for i, each in enumerate(phases) if each == name] for name in phases}
        axes.set_yticks([sum(places) / len(places) for places in rows.values()], list(rows))
        axes.set_ylim(len(ratios) - 0.4, -0.6)
        axes.set_xlabel(f"times the latency of the first: {_short(names[0])}")
        axes.grid(visible=False, axis="y")
    return Html("".join(svg))


def multiple(value: float) -> str:
    """A ratio for people: two decimals, and three digits from ten on."""
    return f"{value:.2f}" if value < 10 else f"{value:.3g}"


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= 28 else f"{name[:27]}…"


def _context_axes(axes: Axes, report: ProfileReport) -> None:
    contexts = sorted({phase.tokens for phase in report.phases if phase.kind == "step"})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(contexts, [f"{tokens:,}" for tokens in contexts])
    axes.xaxis.set_minor_locator(NullLocator())
    _plain_ticks(axes, "y")
    axes.set_xlabel("tokens of context")


def _plain_ticks(axes: Axes, which: str) -> None:
    """Ticks at 1, 2 and 5 of each decade, as plain numbers; fewer over many decades."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    decades = np.log10(high / low) if low > 0 else 1
    axis.set_major_locator(LogLocator(10, (1, 2, 5) if decades < 2.5 else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())
    if decades < 0.25:
        axis.set_major_locator(LogLocator(10, [1 + 0.1 * i for i in range(90)], numticks=6))


@contextmanager
def _figure(label: str, size: tuple[float, float]) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on; the list holds the SVG afterwards."""
    drawn: list[str] = []
    settings = {**_STYLE, "svg.hashsalt": label}
    with rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that matplotlib's font lacks; the page's has
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        yield axes, drawn
        file = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    drawn.append(_inline(file.getvalue(), label))


def _inline(svg: str, label: str) -> str:
    """The part of an SVG file that stands in a page: no ids but those referred to, no size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" {_ROLE}>', svg, count=1
    )
    svg = svg.replace("LABEL", text(label), 1).replace("xlink:href", "href")
    for colour, name in _NAMES.items():
        svg = svg.replace(colour, f"var({name})")
    return svg


_ROLE = 'role="img" aria-label="LABEL"'
