"""A Ray cluster of two nodes here: the same results, and a node that dies costs its jobs alone."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import job_functions
import pytest
from job_functions import fail, read_twice, slowly, square

from intaglio.errors import InputError, OptionError
from intaglio.jobs import Kept, Where, run_all

ray = pytest.importorskip("ray", reason="there is no Ray for this Python")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(job_functions.__file__).parent))
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_a_cluster_of_two_nodes(nodes: Any, tmp_path: Path) -> None:
    second = nodes.add_node(num_cpus=1, object_store_memory=80_000_000)
    with Where(ray=nodes.address).open() as pool:
        assert run_all(pool, square, range(9)) == [n * n for n in range(9)]
        shared = pool.share(20)
        found = [
            value for _, same, value in pool.map(read_twice, [shared] * 3, range(3)) if not same
        ]
        assert found == [20, 21, 22]
        with pytest.raises(InputError, match=r"^no such array$"):
            pool.submit(fail, "input").result()
        kept, notes = Kept(tmp_path / "work", ""), tmp_path / "notes"
        notes.mkdir()
        killer = Thread(target=_kill_in_the_middle, args=(nodes, second, notes), daemon=True)
        killer.start()
        before, first = pool.died, [str(notes)]
        assert run_all(pool, slowly, range(4), first=first, kept=kept) == [1, 2, 3, 4]
        killer.join()
        assert 1 <= pool.died - before <= 2  # what it ran, and what waited there
        assert len(list(notes.iterdir())) == 4 + pool.died - before
    assert not ray.is_initialized()


def _kill_in_the_middle(nodes: Any, node: Any, notes: Path) -> None:
    """Kill a node while it runs a job, with all its processes, as a machine that fails."""
    while not (found := list(notes.glob(f"*.{node.node_id}.*"))):
        time.sleep(0.02)
    nodes.remove_node(node, allow_graceful=False)
    os.kill(int(found[0].suffix[1:]), signal.SIGKILL)


def test_a_cluster_that_is_not_there_is_told() -> None:
    with pytest.raises(OptionError, match=r"There is no Ray cluster at 127.0.0.1:1: .*refused"):
        Where(ray="127.0.0.1:1").open()
