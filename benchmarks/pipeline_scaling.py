"""How the time of the passes grows with the graph: 1,000 to 64,000 nodes.

    python benchmarks/pipeline_scaling.py [--quick] [--json]

Graphs are traced from real modules and made deep by repeating their last layers, weights of their
own names included.  Each size is four times the one before; the time of a pass may grow fivefold.
A pass that looks at the whole graph for every layer grows sixteenfold.  Times are those of the
processor.  A machine may be fast for seconds and slow for minutes, so each pass runs on all sizes
one right after the other, and what counts is the median of the ratios of several rounds; where that
is above the limit, its two sizes go through further rounds, up to a bound.  What would be the
growth of the memory's time is kept out: caches are overwritten before each pass, since a small
graph would be walked within them, a large one not; and memory comes in huge pages, where Linux
gives them on request, since the page tables of 64,000 nodes outgrow the processor's.  The last rows
are of loops over tokens, whose bodies grow (`loop_scaling.py`).
"""

import gc
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import loop_scaling
import numpy as np
import onnx_ir as ir
import torch
from evidence import Row, run

from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.trace import trace
from intaglio.exporter.writing.graph_files import save_graphs
from intaglio.models import find, gated_deltanet, llama, save
from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.collection import uncollected
from intaglio.passes.graph import dims, module_of
from intaglio.quiet import quiet

SIZES = (1_000, 4_000, 16_000, 64_000)
RATIO = 5.0
ROUNDS, MOST_ROUNDS = 3, 15
CACHES = np.zeros(96 << 20, np.uint8)  # larger than the last-level cache
HUGE_PAGES = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclass(frozen=True)
class Kind:
    """A system, tiny and shallow: how it is written, and how many of its last layers repeat."""

    name: str
    write: Callable[[Path], Path]
    period: int


def _ours(name: str, config: Any, period: int) -> Kind:
    def write(folder: Path) -> Path:
        save(folder / "model.pt", name.partition(",")[0], config, find(model).build(config))
        return folder / "model.pt"

    model = name.partition(",")[0]
    return Kind(name, write, period)


def _qwen3(folder: Path) -> Path:
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    with quiet():
        transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


KINDS = (
    _ours("llama", replace(llama.TINY, hidden_size=32, intermediate_size=64), 1),
    _ours("llama, sliding window", replace(llama.WINDOW, hidden_size=32, intermediate_size=64), 1),
    _ours("gated-deltanet, hybrid", replace(gated_deltanet.TINY, num_layers=8), 4),
    Kind("Qwen3 of transformers", _qwen3, 1),
)


def measure(quick: bool) -> list[Row]:
    """Rows of growth for every pass and for the whole, for each kind of model; those of loops."""
    torch.set_num_threads(1)
    sizes = SIZES[:3] if quick else SIZES
    return [row for kind in KINDS for row in _rows(kind, sizes)] + loop_scaling.measure(quick)


def _rows(kind: Kind, sizes: tuple[int, ...]) -> list[Row]:
    small = _traced(kind)
    models = [deepen(small, size, kind.period) for size in sizes]
    counts = [len(model.graph) for model in models]
    found: dict[tuple[int, str], Pairs] = {}
    wanted = list(range(len(sizes) - 1))  # the smaller sizes of the pairs to measure
    for index in range(MOST_ROUNDS):
        taken = sorted({*wanted, *(size + 1 for size in wanted)})
        times = dict(zip(taken, _round([models[size] for size in taken]), strict=True))
        for size in wanted:
            ratio = counts[size + 1] / counts[size] / 4
            for name, before in times[size].items():
                pairs = found.setdefault((size, name), Pairs())
                pairs.growths.append(times[size + 1][name] / before / ratio)
                pairs.seconds.append(times[size + 1][name])
        if index + 1 < ROUNDS:
            continue
        wanted = sorted({size for (size, _), pairs in found.items() if pairs.growth > RATIO})
        if not wanted:
            break
    return [
        Row(
            name=f"{kind.name}, {counts[size]} to {counts[size + 1]} nodes: {name}",
            value=pairs.growth,
            unit="t(4n) / t(n)",
            target=f"<= {RATIO:g}",
            holds=pairs.growth <= RATIO,
            note=f"{1e3 * median(pairs.seconds):.0f} ms; median of {len(pairs.growths)} pairs",
        )
        for (size, name), pairs in found.items()
    ]


@dataclass
class Pairs:
    """What rounds found of one pass on two sizes: growth of its time, and time on the larger."""

    growths: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """The median."""
        return median(self.growths)


def _traced(kind: Kind) -> ir.Model:
    with tempfile.TemporaryDirectory() as folder:
        return trace(load_source(kind.write(Path(folder)))).model


def deepen(model: ir.Model, nodes: int, period: int) -> ir.Model:
    """A copy of `model` of about `nodes` nodes: its last `period` layers again and again."""
    model = model.clone()
    graph = model.graph
    depth = 1 + max(layer for node in graph if (layer := _layer(node)) is not None)
    first = depth - period
    repeated = [node for node in graph if (_layer(node) or 0) >= first]
    own = {value for node in repeated for value in node.outputs}
    leaves = next(v for v in own if any(node not in repeated for node, _ in v.uses()))
    enters = next(
        v
        for node in repeated
        for v in node.inputs
        if v is not None and v not in own and v.producer() and dims(v) == dims(leaves)
    )
    anchor, stream, users = repeated[-1], leaves, list(leaves.uses())
    while len(graph) < nodes:
        values: dict[ir.Value | None, ir.Value | None] = {enters: stream}
        copies = [_again(node, values, graph, first, depth) for node in repeated]
        graph.insert_after(anchor, copies)
        anchor, stream, depth = copies[-1], values[leaves] or stream, depth + period
    for node, index in users:
        if node not in repeated:
            node.replace_input_with(index, stream)
    return model


def _layer(node: ir.Node) -> int | None:
    found = re.search(r"\blayers\.(\d+)", module_of(node))
    return int(found[1]) if found else None


def _again(
    node: ir.Node,
    values: dict[ir.Value | None, ir.Value | None],
    graph: ir.Graph,
    first: int,
    depth: int,
) -> ir.Node:
    """A copy of `node`, `depth - first` layers later, on the copies of its inputs."""

    def later(name: str) -> str:
        head, _, rest = name.partition("layers.")
        number, dot, tail = rest.partition(".")
        return f"{head}layers.{int(number) - first + depth}{dot}{tail}" if rest else name

    for value in node.inputs:
        if value is not None and value not in values and value.is_initializer():
            name = later(str(value.name))
            if name != value.name:
                copy = ir.Value(name=name, type=value.type, shape=value.shape)
                copy.const_value = value.const_value
                graph.initializers.add(copy)
                values[value] = copy
    new = ir.Node(
        node.domain,
        node.op_type,
        [values.get(value, value) for value in node.inputs],
        node.attributes.values(),
        overload=node.overload,
        num_outputs=len(node.outputs),
        version=node.version,
        name=f"{node.name}.{depth}",
        metadata_props={key: later(text) for key, text in node.metadata_props.items()},
    )
    for old, value in zip(node.outputs, new.outputs, strict=True):
        value.name, value.type, value.shape = f"{old.name}.{depth}", old.type, old.shape
        values[old] = value
    return new


def _round(models: Sequence[ir.Model]) -> list[dict[str, float]]:
    """Seconds of every pass, of all of them, and of writing the graphs, for each model."""
    runs = [(model.clone(), Context()) for model in models]
    lowered: list[dict[str, ir.Model]] = [{} for _ in models]
    seconds: list[dict[str, float]] = [{} for _ in models]

    def timed(index: int, name: str, call: Callable[[], object]) -> None:
        CACHES.fill(index)
        start = time.process_time()
        call()
        seconds[index][name] = seconds[index].get(name, 0.0) + time.process_time() - start

    gc.collect()
    with uncollected(), tempfile.TemporaryDirectory() as folder:  # as an export does
        for path, steps in (
            ("model.onnx", pipeline.standard()),
            ("ort/model.onnx", pipeline.lowering("ort")),
        ):
            for step in steps:
                for index, (model, context) in enumerate(runs):
                    timed(index, step.name, partial(pipeline.run, model, [step], context))
            for kept, (model, _) in zip(lowered, runs, strict=True):
                kept[path] = model.clone()
        for each in seconds:
            each["all passes"] = sum(each.values())
        for index, graphs in enumerate(lowered):
            place = Path(folder, str(index))
            place.mkdir()
            timed(index, "writing the graphs", partial(save_graphs, place, graphs))
    return seconds


if __name__ == "__main__":
    if not HUGE_PAGES.items() <= os.environ.items():  # an allocator is chosen when Python starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **HUGE_PAGES})
    run(__doc__, measure)
