"""GraphGPS as an engine: cost linear in nodes and edges, and 100,000 nodes in bounded memory.

    python benchmarks/graphgps.py [--quick] [--json]

Linear attention and messages of GINE, random weights, random graphs of three edges a node; the time
of a call is the median of several, of its one thread.  Memory is what the process has at its peak.
"""

import resource
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import Row, run

import intaglio
from intaglio.models.graphgps import GRAPHGPS, TINY, inputs
from intaglio.runtime import Session
from intaglio.runtime.graph_batches import join

CONFIG = replace(TINY, attention="linear", head_size=8, random_features=16)
MOST = 1.3  # of the time that is in proportion
GIGABYTES = 2.0


def measure(quick: bool) -> list[Row]:
    """Times at growing graphs, and memory at the largest."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = GRAPHGPS.build(CONFIG).eval()
    assert GRAPHGPS.axes is not None
    with tempfile.TemporaryDirectory() as folder:
        given = inputs(CONFIG, 3, 5, torch.Generator().manual_seed(0))
        report = intaglio.export(
            module, Path(folder) / "b", inputs=given, axes=GRAPHGPS.axes(CONFIG)
        )
        assert report.parity is not None
        worst = report.parity.worst.found
        session = Session.load(Path(folder) / "b", threads=1)
        sizes = (2_000, 20_000) if quick else (10_000, 100_000)
        times = [_seconds(session, _graph(nodes), 3 if quick else 5) for nodes in sizes]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    share = times[1] / times[0] / (sizes[1] / sizes[0])
    return [
        Row(
            name="error",
            value=worst.error / worst.limit,
            unit="of the limit",
            target="<= 1",
            holds=report.parity.passed,
            against="PyTorch, float64",
        ),
        Row(
            name=f"time at {sizes[1]:,} nodes : {sizes[0]:,}",
            value=share,
            unit="of proportional",
            target=f"<= {MOST}",
            holds=share <= MOST,
            note=f"{times[0] * 1e3:.0f} and {times[1] * 1e3:.0f} ms",
        ),
        Row(
            name=f"memory of the process at {sizes[1]:,} nodes",
            value=peak,
            unit="GB",
            target=f"<= {GIGABYTES}",
            holds=peak <= GIGABYTES,
            note="with PyTorch and the exporter, which the process has loaded",
        ),
    ]


def _graph(nodes: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return join(
        [
            {
                "x": rng.integers(0, CONFIG.node_types, nodes),
                "edge_index": rng.integers(0, nodes, (2, 3 * nodes)),
                "edge_attr": rng.integers(0, CONFIG.edge_types, 3 * nodes),
                "encoding": rng.random((nodes, CONFIG.encoding_size), np.float32),
            }
        ]
    )


def _seconds(session: Session, feeds: dict[str, Any], calls: int) -> float:
    found = []
    for _ in range(calls + 1):
        start = time.thread_time()
        session.step(feeds)
        found.append(time.thread_time() - start)
    return statistics.median(found[1:])


if __name__ == "__main__":
    run(__doc__, measure)
