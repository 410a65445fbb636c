"""A decoder in a process of its own: ``low_bit_worker.py KIND FOLDER THREADS [ROWS]``.

KIND is intaglio, tables or genai; ROWS are decoded together, by ours alone.

It prints what loading took, then for each line ``PREFILL STEPS`` on its input one object: seconds
of a fresh prefill of so many tokens, of so many greedy steps after it, and its peak memory so far.
With one thread, seconds are those that the processor worked for it: they hold on a busy machine.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

CAPACITY = 640  # tokens of context that there is room for
Prefill = Callable[[list[int]], int]  # consumes tokens from an empty context; returns the next one
Step = Callable[[int], int]


def serve(load: Callable[[], tuple[Prefill, Step]], threads: int) -> None:
    """Load, then answer requests until the input ends."""
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    prefill, step = load()
    print(json.dumps({"load": clock() - start}), flush=True)
    for line in sys.stdin:
        length, steps = map(int, line.split())
        tokens = np.random.default_rng(length).integers(1, 8000, length).tolist()
        start = clock()
        token = prefill(tokens)
        middle = clock()
        for _ in range(steps):
            token = step(token)
        end = clock()
        answer = {"prefill": middle - start, "decode": end - middle, "peak": peak()}
        print(json.dumps(answer), flush=True)


def peak() -> int:
    """Most bytes of this process in physical memory so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def intaglio(
    path: str, threads: int, *, tables: bool = False, rows: int = 1
) -> tuple[Prefill, Step]:
    """A bundle, through `Session.step`; rows take the same tokens."""
    from intaglio.runtime import Session

    session = Session.load(path, threads=threads, capacity=CAPACITY, grow=False, tables=tables)

    def step(tokens: list[int]) -> int:
        logits = session.step({"input_ids": np.array([tokens] * rows, np.int64)})["logits"]
        return int(logits[0, -1].argmax())

    def prefill(tokens: list[int]) -> int:
        session.state.reset()
        return step(tokens)

    return prefill, lambda token: step([token])


def genai(path: str, threads: int) -> tuple[Prefill, Step]:
    """A folder of onnxruntime-genai, through its generator."""
    import onnxruntime_genai

    file = Path(path) / "genai_config.json"
    config = json.loads(file.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    file.write_text(json.dumps(config))
    library: Any = onnxruntime_genai
    model = library.Model(path)
    generator: Any = None

    def prefill(tokens: list[int]) -> int:
        nonlocal generator
        options = library.GeneratorParams(model)
        options.set_search_options(max_length=CAPACITY, do_sample=False)
        generator = library.Generator(model, options)
        generator.append_tokens(np.array([tokens], np.int32))
        generator.generate_next_token()
        return 0

    def step(token: int) -> int:
        generator.generate_next_token()
        return token

    return prefill, step


if __name__ == "__main__":
    kind, folder, count, *rows = sys.argv[1:]
    kinds: dict[str, Callable[[str, int], tuple[Prefill, Step]]] = {
        "intaglio": partial(intaglio, rows=int(rows[0]) if rows else 1),
        "tables": partial(intaglio, tables=True),
        "genai": genai,
    }
    serve(lambda: kinds[kind](folder, int(count)), int(count))
