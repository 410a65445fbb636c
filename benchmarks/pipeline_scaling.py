"""How the time of the passes grows with the graph: 1,000 to 64,000 nodes.

    python benchmarks/pipeline_scaling.py [--quick] [--json]

Graphs are traced from real modules and made deep by repeating their last layers, weights of their
own names included.  Each size is four times the one before; the time of a pass may grow fivefold.
A pass that looks at the whole graph for every layer grows sixteenfold.  Times are those of the
processor, the least of several rounds through all sizes: a machine may be slow for minutes.  The
caches are overwritten before each pass: a small graph would be walked within them, a large one not,
and the ratio would be that of the memory's speeds.
"""

import gc
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from evidence import Row, run

from intaglio.exporter.capture import quiet
from intaglio.exporter.graph_files import save_graphs
from intaglio.exporter.load import load_source
from intaglio.exporter.trace import trace
from intaglio.models import find, gated_deltanet, llama, save
from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.collection import uncollected
from intaglio.passes.graph import dims, module_of

SIZES = (1_000, 4_000, 16_000, 64_000)
RATIO = 5.0
REPEATED = 20_000  # nodes up to which a size is run in every round, larger ones in all but one
ROUNDS = 3
CACHES = np.zeros(1 << 28, np.uint8)  # larger than the last-level cache


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
    """Rows of growth for every pass and for the whole, for each kind of model."""
    torch.set_num_threads(1)
    sizes = SIZES[:3] if quick else SIZES
    return [row for kind in KINDS for row in _rows(kind, sizes)]


def _rows(kind: Kind, sizes: tuple[int, ...]) -> list[Row]:
    small = _traced(kind)
    models = [deepen(small, size, kind.period) for size in sizes]
    runs: list[list[dict[str, float]]] = [[] for _ in sizes]
    for index in range(ROUNDS):
        for size, model, times in zip(sizes, models, runs, strict=True):
            if index or size < REPEATED:
                times.append(_times(model.clone()))
    seconds = [{name: min(run[name] for run in times) for name in times[0]} for times in runs]
    counts = [len(model.graph) for model in models]
    rows = []
    for before, after, n, m in zip(seconds, seconds[1:], counts, counts[1:], strict=False):
        for name in before:
            growth = after[name] / before[name] / (m / n / 4)
            rows.append(
                Row(
                    name=f"{kind.name}, {n} to {m} nodes: {name}",
                    value=growth,
                    unit="t(4n) / t(n)",
                    target=f"<= {RATIO:g}",
                    holds=growth <= RATIO,
                    note=f"{1e3 * after[name]:.0f} ms",
                )
            )
    return rows


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


def _times(model: ir.Model) -> dict[str, float]:
    """Seconds of every pass, of all of them, and of writing the graphs."""
    context = Context()
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], object]) -> None:
        CACHES.fill(len(seconds))
        start = time.process_time()
        call()
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - start

    gc.collect()
    lowered: list[ir.Model] = []
    with uncollected(), tempfile.TemporaryDirectory() as folder:  # as an export does
        for steps in (pipeline.standard(), pipeline.lowering("ort")):
            for step in steps:
                timed(step.name, lambda step=step: pipeline.run(model, [step], context))  # type: ignore[misc]
            lowered.append(model.clone())
        seconds["all passes"] = sum(seconds.values())
        graphs = {"model.onnx": lowered[0], "ort/model.onnx": lowered[1]}
        timed("writing the graphs", lambda: save_graphs(Path(folder), graphs))
    return seconds


if __name__ == "__main__":
    run(__doc__, measure)
