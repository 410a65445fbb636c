"""Sequences through a real Triton server on a processor, against streams in process.

    python benchmarks/triton_server.py [--quick] [--json]

The trained hybrid checkpoint, 32 sequences at once, a client with a thread for each; each sends its
next token when it has the outputs of the last.  `Streams` in process take the same from as many
threads; rounds alternate, and ratios are medians of pairs.  Then the server is killed, another one
resumes all sequences, and their outputs are compared with those of a session.
"""

import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from evidence import Row, run

import intaglio
from intaglio.runtime import Session, Streams
from intaglio.runtime.serving.model_config import Serving
from intaglio.runtime.serving.repository import write_repository

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/support"))
from loopback_triton import serve

CHECKPOINT = Path(__file__).parents[1] / "models/checkpoints/gated_deltanet.pt"
COUNT = 32


def measure(quick: bool) -> list[Row]:
    """Throughput and latency, then what a killed server has lost."""
    seconds, rounds = (2.0, 2) if quick else (5.0, 6)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        intaglio.export(CHECKPOINT, folder / "lm", verify=False)
        parameters = {"store": str(folder / "saved"), "save_every": "16"}
        serving = Serving(rows=COUNT, sequences=2 * COUNT, parameters=parameters)
        write_repository(folder / "lm", folder / "repository", serving)
        start = time.perf_counter()
        with serve(folder / "repository", folder) as (address, process):
            ready = time.perf_counter() - start
            rows = _speed(folder, address, seconds, rounds)
            fed = _begin(address)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with serve(folder / "repository", folder) as (address, _):
            lost, error = _resume(folder / "lm", address, fed)
    return [
        Row(name="start of the server", value=ready, unit="s"),
        *rows,
        Row(name="sequences that a killed server has lost", value=lost, unit="of 32",
            target="0", holds=lost == 0, note=f"largest error after it {error:.1e}"),
    ]  # fmt: skip


def _speed(folder: Path, address: str, seconds: float, rounds: int) -> list[Row]:
    ours, theirs, late, late_in = [], [], [], []
    with Streams(folder / "lm", COUNT) as streams:
        for index in range(rounds):
            clients = [_Client(address) for _ in range(COUNT)]
            numbers = range(1000 + 100 * index, 1000 + 100 * index + COUNT)

            def served(i: int, clients: Any = clients, numbers: Any = numbers) -> Callable[[], Any]:
                clients[i].step(numbers[i], [1], sequence_start=True)
                return lambda: clients[i].step(numbers[i], [7])

            def within(_: int) -> Callable[[], Any]:
                stream = streams.open()
                return lambda: stream.step({"input_ids": [[7]]})

            a, lates = _rate(served, seconds)
            b, lates_in = _rate(within, seconds)
            ours.append(a)
            theirs.append(b)
            late += lates
            late_in += lates_in
            for client, number in zip(clients, numbers, strict=True):
                client.step(number, [7], sequence_end=True)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    in_process = "streams in process"
    return [
        Row(name="32 sequences: tokens", value=statistics.median(ours), unit="1/s"),
        Row(name="32 sequences: against streams", value=ratio, unit="ratio", against=in_process),
        *(
            Row(name=f"32 sequences{of}: p{at}", unit="ms",
                value=float(np.percentile(np.array(found) * 1e3, at)))
            for of, found in (("", late), (f", {in_process}", late_in)) for at in (50, 99)
        ),
    ]  # fmt: skip


def _rate(make: Callable[[int], Callable[[], Any]], seconds: float) -> tuple[float, list[float]]:
    """Tokens per second of 32 threads, and how long each token took."""
    steps = [make(index) for index in range(COUNT)]
    until, late = time.perf_counter() + seconds, []

    def work(index: int) -> None:
        while (start := time.perf_counter()) < until:
            steps[index]()
            late.append(time.perf_counter() - start)

    _together(work)
    return len(late) / seconds, late


def _together(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(index,)) for index in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


TOKENS = np.random.default_rng(0).integers(0, 256, (COUNT, 64))


def _begin(address: str) -> list[int]:
    """How many tokens of each sequence were answered, a few more of each than of the one before."""
    safe = [0] * COUNT

    def work(index: int) -> None:
        client = _Client(address)
        for place in range(20 + index % 9):
            told = client.step(
                index + 1, TOKENS[index, place : place + 1], sequence_start=not place
            )
            safe[index] = told[1]

    _together(work)
    return safe


def _resume(bundle: Path, address: str, safe: list[int]) -> tuple[int, float]:
    """Sequences that cannot go on, and the largest error of those that do."""
    alone = Session.load(bundle).step({"input_ids": TOKENS})["logits"]
    errors: list[float] = []

    def work(index: int) -> None:
        told = {"resume": True, "past_length": safe[index]}
        rest = TOKENS[index, safe[index] :]
        found, _ = _Client(address).step(
            index + 1, rest, sequence_start=True, sequence_end=True, parameters=told
        )
        expected = alone[index, 64 - found.shape[1] :]
        errors.append(float(np.abs(found[0] - expected).max() / np.abs(alone).max()))

    _together(work)
    return COUNT - len(errors), max(errors, default=0.0)


class _Client:
    def __init__(self, address: str) -> None:
        import tritonclient.grpc as client

        self._library, self._connection = client, client.InferenceServerClient(address)

    def step(self, number: int, ids: Any, **options: Any) -> tuple[Any, int]:
        given = self._library.InferInput("input_ids", [1, len(ids)], "INT64")
        given.set_data_from_numpy(np.array([ids], np.int64).reshape(1, -1))
        result = self._connection.infer("lm", [given], sequence_id=number, **options)
        return result.as_numpy("logits"), int(result.as_numpy("saved_length")[0, 0])


if __name__ == "__main__":
    run(__doc__, measure)
