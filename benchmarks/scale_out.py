"""One search for a budget on one Ray node and on two, and with a node that dies in the middle.

    python benchmarks/scale_out.py [--quick] [--json]

Nodes are of a cluster on this machine, each with one processor: what is held is that tables are the
same wherever evaluations ran, and that a node which dies, with all its processes, costs only what
it had at hand.  Seconds are told, and mean little where nodes share processors.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from budgets import make
from evidence import Row, run
from ray.cluster_utils import Cluster

from intaglio.exporter.subnet import SubnetReport, search_subnet
from intaglio.jobs import Pool, Where
from intaglio.quiet import quiet

BUDGET, EVALUATIONS = "5bits", (12, 6)
NODE = {"num_cpus": 1, "object_store_memory": 200_000_000}
AT_HAND = 2  # jobs of a node: one that runs, and one that waits there


@dataclass(frozen=True)
class Watched(Where):
    """Where jobs run, whose pools are kept to be asked."""

    pools: list[Pool] = field(default_factory=list)

    def open(self) -> Pool:
        self.pools.append(super().open())
        return self.pools[-1]


@contextmanager
def cluster(nodes: int) -> Iterator[tuple[Any, Any]]:
    """A cluster of nodes here, and the last of them."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        last = [made.add_node(**NODE) for _ in range(nodes - 1)]
        yield made, last[-1] if last else None
    finally:
        made.shutdown()


def measure(quick: bool) -> list[Row]:
    """Rows of the tables, and of what a dead node costs."""
    evaluations = (6, 3) if quick else EVALUATIONS
    says = redirect_stdout(sys.stderr)  # Ray tells of nodes that die
    with tempfile.TemporaryDirectory() as name, quiet(), says:
        folder = Path(name)
        make(folder, 20)

        def search(where: Where, **more: Any) -> tuple[SubnetReport, float]:
            start = time.perf_counter()
            found = search_subnet(
                folder / "super.pt",
                budget=BUDGET,
                data=folder / "searched.npz",
                evaluations=evaluations,
                where=where,
                **more,
            )
            return found, time.perf_counter() - start

        here, seconds = search(Where())
        rows = [
            Row(name="here: seconds", value=seconds, unit="s",
                note=f"{len(here.tried)} evaluations, one after the other"),
        ]  # fmt: skip
        for count in (1, 2):
            with cluster(count) as (made, _):
                found, seconds = search(Where(ray=made.address))
            rows.append(_same(f"{count} Ray nodes", found, here, seconds))
        found, seconds = search(Where(jobs=2))
        rows.append(_same("2 processes", found, here, seconds))
        killed: list[float] = []
        with cluster(2) as (made, last):
            where = Watched(ray=made.address)

            def tell(_: str, done: float | None) -> None:
                if done is not None and done > 0.3 and not killed:
                    killed.append(done)
                    Thread(target=_kill, args=(made, last), daemon=True).start()

            found, seconds = search(where, progress=tell)
        lost = where.pools[0].died
    rows.append(_same("2 Ray nodes, one killed", found, here, seconds))
    said = f"after {killed[0]:.0%} of the evaluations, of {len(found.tried)} in all"
    return [
        *rows,
        Row(
            name="evaluations that the killed node cost",
            value=lost,
            unit="run again",
            target=f"<= {AT_HAND}",
            holds=lost <= AT_HAND,
            note=said,
        ),
    ]


def _same(name: str, found: SubnetReport, wanted: SubnetReport, seconds: float) -> Row:
    """How many lines of two tables differ."""
    pairs = zip(found.tried, wanted.tried, strict=False)
    other = sum(a != b for a, b in pairs) + abs(len(found.tried) - len(wanted.tried))
    same = other == 0 and found.taken == wanted.taken
    return Row(
        name=f"{name}: lines of the table that differ",
        value=other,
        unit="lines",
        target="0",
        holds=same,
        against="here",
        note=f"of {len(wanted.tried)}; {seconds:.1f} s",
    )


def _kill(made: Any, node: Any) -> None:
    """Kill a node with all its processes, as a machine that fails."""
    raylet = node.all_processes["raylet"][0].process.pid
    workers = _children(raylet)
    made.remove_node(node, allow_graceful=False)
    for pid in workers:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


if __name__ == "__main__":
    run(__doc__, measure)
