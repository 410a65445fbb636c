"""Many streams over one engine, against one session for each of them in threads.

    python benchmarks/streams.py [--quick] [--json]

On the trained hybrid checkpoint (gated delta rule and attention) and on a recurrent model of 100M
random parameters.  Every stream feeds a token as soon as it has the outputs of the last: tokens per
second.  Then tokens arrive at random, exponentially spaced, at half of the rate that `Streams`
reached: the time from a token's arrival to its outputs.  One session for each stream, in a thread
each, takes the same tokens; rounds alternate, and ratios are medians of pairs of rounds.

onnxruntime-genai knows no model of these families.  Its `Engine`, which batches requests as they
come, and `Streams` decode greedily from a Llama of 4 layers and 256 channels with random weights,
each with the graph of its own builder: as many prompts of 4 tokens at once, 128 tokens for each.

The bits of a stream alone are compared with those that it gives among others, and memory is held
over many steps with streams that come and go.
"""

import heapq
import json
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime_genai
import torch
from evidence import Row, run
from genai_peer import add_tokenizer, build
from transformers import LlamaConfig, LlamaForCausalLM

import intaglio
from intaglio.models import find, save
from intaglio.models.gated_deltanet import Config
from intaglio.runtime import Session, Streams

CHECKPOINT = Path(__file__).parents[1] / "models/checkpoints/gated_deltanet.pt"
LARGE = Config(
    vocab_size=4096, hidden_size=768, intermediate_size=2048, num_layers=11, num_heads=12,
    head_size=64, attention_every=100,
)  # fmt: skip
COUNTS = (1, 16, 64, 256)
TIMES, AT = 3.0, 64  # the least ratio, and at how many streams
PROMPT, NEW = 4, 128  # tokens of each sequence beside onnxruntime-genai


def measure(quick: bool) -> list[Row]:
    """Rows for each model, then for bits and memory."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        intaglio.export(CHECKPOINT, small, verify=False)
        torch.manual_seed(0)
        save(Path(folder, "large.pt"), "gated-deltanet", LARGE, find("gated-deltanet").build(LARGE))
        intaglio.export(Path(folder, "large.pt"), large, verify=False)
        counts = (1, 16, 64) if quick else COUNTS
        rows = []
        for name, bundle, seconds in (("hybrid", small, 1.0), ("100M", large, 4.0)):
            for count in counts:
                rows += _count(name, bundle, count, seconds / (2 if quick else 1), quick)
        rows += _beside_genai(Path(folder), counts, 2 if quick else 5)
        return [*rows, *_bits("hybrid", small), *_bits("100M", large), *_memory(small, quick)]


def _count(name: str, bundle: Path, count: int, seconds: float, quick: bool) -> list[Row]:
    """One number of streams: saturated, then with random arrivals at half of that rate.

    Sessions have a thread each, which run beside each other; streams have the lanes that they
    choose, or two threads within a call.
    """
    session = Session.load(bundle, threads=1)
    sessions = [session.fork() for _ in range(count)]
    with Streams(bundle, min(count, 64), queue=64, backlog=1 << 16, capacity=256) as streams:
        opened = [streams.open() for _ in range(count)]
        ours, theirs, ratios = [], [], []
        for index in range(2 if quick else 5):
            a, b = _saturated(opened, seconds), _threads(sessions, seconds)
            if index:
                ours.append(a)
                theirs.append(b)
                ratios.append(a / b)
            for each in sessions:
                each.state.reset()
            opened = _renewed(streams, opened)
        rate, ratio = statistics.median(ours), statistics.median(ratios)
        due = count == AT
        of, note = f"{name}, {count} streams", f"lanes: {streams.lanes}"
        rows = [
            Row(name=f"{of}: tokens", value=rate, unit="1/s", note=note),
            Row(name=f"{of}: tokens, sessions", value=statistics.median(theirs), unit="1/s"),
            Row(name=f"{of}: against sessions", value=ratio, unit="ratio",
                target=f">= {TIMES}" if due else None, holds=ratio >= TIMES if due else None,
                against="a session for each stream in a thread of its own"),
        ]  # fmt: skip
        late = _arriving(lambda i, done: _feed(opened[i], done), count, rate / 2, seconds)
        rows += _late(f"{of}, Poisson", rate / 2, late)
    if count <= 64:
        with _Workers(sessions) as workers:
            late = _arriving(workers.feed, count, rate / 2, seconds)
        rows += _late(f"{of}, Poisson, sessions", rate / 2, late)
    return rows


def _late(of: str, rate: float, late: list[float]) -> list[Row]:
    p50, p99 = np.percentile(np.array(late) * 1e3, [50, 99])
    note = f"{rate:.0f} tokens/s arrive"
    return [
        Row(name=f"{of}: p50", value=float(p50), unit="ms", note=note),
        Row(name=f"{of}: p99", value=float(p99), unit="ms", note=note),
    ]


def _renewed(streams: Streams, opened: list[Any]) -> list[Any]:
    for stream in opened:
        stream.close()
    return [streams.open() for _ in opened]


def _saturated(opened: list[Any], seconds: float) -> float:
    """Tokens per second where each stream feeds its next token when it has the last."""
    until, ended = time.perf_counter() + seconds, threading.Semaphore(0)
    counts = [0] * len(opened)

    def feed(index: int) -> None:
        opened[index].feed({"input_ids": TOKEN}).add_done_callback(lambda _: went(index))

    def went(index: int) -> None:
        counts[index] += 1
        if time.perf_counter() < until:
            feed(index)
        else:
            ended.release()

    start = time.perf_counter()
    for index in range(len(opened)):
        feed(index)
    for _ in opened:
        ended.acquire()
    return sum(counts) / (time.perf_counter() - start)


TOKEN = np.array([[7]])


def _threads(sessions: list[Session], seconds: float) -> float:
    """Tokens per second of a session in each of as many threads."""
    until, counts = time.perf_counter() + seconds, [0] * len(sessions)

    def work(index: int) -> None:
        while time.perf_counter() < until:
            sessions[index].step({"input_ids": TOKEN})
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(sessions))]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def _feed(stream: Any, done: Callable[[], None]) -> None:
    stream.feed({"input_ids": TOKEN}).add_done_callback(lambda _: done())


class _Workers:
    """A thread and a session for each stream, which take tokens in turn."""

    def __init__(self, sessions: list[Session]) -> None:
        self._ends = False
        self._queues: list[list[Callable[[], None]]] = [[] for _ in sessions]
        self._there = [threading.Semaphore(0) for _ in sessions]
        self._threads = [
            threading.Thread(target=self._work, args=(i, each)) for i, each in enumerate(sessions)
        ]

    def feed(self, index: int, done: Callable[[], None]) -> None:
        self._queues[index].append(done)
        self._there[index].release()

    def _work(self, index: int, session: Session) -> None:
        while True:
            self._there[index].acquire()
            if self._ends:
                return
            session.step({"input_ids": TOKEN})
            self._queues[index].pop(0)()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ends = True
        for there in self._there:
            there.release()
        for thread in self._threads:
            thread.join()


def _arriving(
    feed: Callable[[int, Callable[[], None]], None], count: int, rate: float, seconds: float
) -> list[float]:
    """Seconds from the arrival of each token to its outputs; arrivals are a Poisson process."""
    random = np.random.default_rng(1)
    each = rate / count
    due = [(float(random.exponential(1 / each)), index) for index in range(count)]
    heapq.heapify(due)
    start, late, fed, told = time.perf_counter(), [], 0, threading.Semaphore(0)
    while due[0][0] < seconds:
        at, index = due[0]
        heapq.heapreplace(due, (at + float(random.exponential(1 / each)), index))
        left = start + at - time.perf_counter()
        if left > 0:
            time.sleep(left)

        def done(arrived: float = start + at) -> None:
            late.append(time.perf_counter() - arrived)
            told.release()

        feed(index, done)
        fed += 1
    for _ in range(fed):
        told.acquire()
    return late


def _beside_genai(folder: Path, counts: Sequence[int], rounds: int) -> list[Row]:
    """Tokens per second of sequences that begin at once, and onnxruntime-genai's."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=704, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    add_tokenizer(folder / "llama", config.vocab_size)
    intaglio.export(folder / "llama", folder / "ours", verify=False)
    path = build(folder / "llama", folder / "peer", threads=2) / "genai_config.json"
    peer = json.loads(path.read_text()) | {"engine": {"static_batching": {"max_batch_size": 256}}}
    path.write_text(json.dumps(peer))
    engine = onnxruntime_genai.Engine(onnxruntime_genai.Model(str(path.parent)))
    rows = []
    for count in counts:
        prompts = np.random.default_rng(count).integers(3, 1024, (count, PROMPT))
        ours, theirs, ratios = [], [], []
        with Streams(folder / "ours", min(count, 64), backlog=4 * count + 64) as streams:
            for index in range(rounds):
                a, mine = _timed(_greedy, streams, prompts)
                b, given = _timed(_greedy_there, engine, prompts)
                if index:
                    ours.append(count * NEW / a)
                    theirs.append(count * NEW / b)
                    ratios.append(b / a)
        same = sum(one == other for one, other in zip(mine, given, strict=True))
        of, note = f"Llama, {count} streams", f"{same} of {count} sequences have the same tokens"
        rows += [
            Row(name=f"{of}: tokens", value=statistics.median(ours), unit="1/s", note=note),
            Row(name=f"{of}: tokens, genai", value=statistics.median(theirs), unit="1/s"),
            Row(name=f"{of}: against genai", value=statistics.median(ratios), unit="ratio",
                against="onnxruntime-genai's Engine"),
        ]  # fmt: skip
    return rows


def _timed(
    call: Callable[[Any, Any], list[list[int]]], *given: Any
) -> tuple[float, list[list[int]]]:
    start = time.perf_counter()
    found = call(*given)
    return time.perf_counter() - start, found


def _greedy(streams: Streams, prompts: Any) -> list[list[int]]:
    """The likeliest tokens after each prompt, of a stream each."""
    opened, ended = [streams.open() for _ in prompts], threading.Semaphore(0)
    tokens: list[list[int]] = [[] for _ in prompts]

    def went(index: int, done: Any) -> None:
        tokens[index].append(int(done.result()["logits"][0, -1].argmax()))
        if len(tokens[index]) < NEW:
            feed(index, np.array([tokens[index][-1:]]))
        else:
            ended.release()

    def feed(index: int, ids: Any) -> None:
        opened[index].feed({"input_ids": ids}).add_done_callback(lambda done: went(index, done))

    for index, prompt in enumerate(prompts):
        feed(index, prompt[None])
    for _ in opened:
        ended.acquire()
    for stream in opened:
        stream.close()
    return tokens


def _greedy_there(engine: Any, prompts: Any) -> list[list[int]]:
    """The same of requests of onnxruntime-genai's engine."""
    requests, tokens = [], []
    for prompt in prompts:
        request = engine.create_request()
        options = onnxruntime_genai.TurnOptions(request)
        options.set_do_sample(False)
        options.set_min_generated_tokens(NEW)
        options.set_max_generated_tokens(NEW)
        request.begin_turn(prompt.astype(np.int32), options)
        requests.append(request)
    told: dict[Any, list[int]] = {}
    buffer = engine.create_event_buffer(4 * len(requests))
    while engine.has_pending_requests():
        for event in engine.run(buffer):
            if event.flags & onnxruntime_genai.EngineEventFlags.TOKEN:
                told.setdefault(event.request, []).append(int(event.token))
    tokens = [told[request] for request in requests]
    for request in requests:
        request.close()
    return tokens


def _bits(name: str, bundle: Path) -> list[Row]:
    """How many values a stream gives in other bits among others than alone."""
    rows = []
    tokens = np.random.default_rng(0).integers(0, 256, (16, 24))
    session = Session.load(bundle)
    whole = session.step({"input_ids": tokens})["logits"]
    for reproducible in (False, True):
        with Streams(bundle, 16, reproducible=reproducible) as streams:
            among = _all(streams, tokens)
            single = np.concatenate([_all(streams, row[None]) for row in tokens])
        way = "reproducible" if reproducible else "as they come"
        differ, most = float((among != single).mean()), np.abs(among - single).max()
        note = f"largest difference {most / np.abs(whole).max():.1e} of the largest logit"
        rows.append(
            Row(name=f"{name}, {way}: logits of other bits alone", value=differ, unit="share",
                target="0" if reproducible else None,
                holds=differ == 0 if reproducible else None, note=note)
        )  # fmt: skip
    return rows


def _all(streams: Streams, tokens: Any) -> Any:
    opened = [streams.open() for _ in tokens]
    steps = []
    for time_ in range(tokens.shape[1]):
        futures = [
            stream.feed({"input_ids": row[None, time_ : time_ + 1]})
            for stream, row in zip(opened, tokens, strict=True)
        ]
        steps.append(np.concatenate([future.result()["logits"] for future in futures]))
    for stream in opened:
        stream.close()
    return np.concatenate(steps, 1)


def _memory(bundle: Path, quick: bool) -> list[Row]:
    """What the process has grown by over many steps of streams that come and go."""
    total, before = (20_000 if quick else 1_000_000), 0
    with Streams(bundle, 32, context=64, capacity=64) as streams:
        opened = [streams.open() for _ in range(48)]
        while streams.stats.tokens < total:
            for index, stream in enumerate(opened):
                if stream.past_length >= 60:
                    stream.close()
                    opened[index] = streams.open()
            futures = [stream.feed({"input_ids": TOKEN}) for stream in opened for _ in range(4)]
            for future in futures:
                future.result()
            if not before and streams.stats.tokens > total / 10:
                before = _resident()
        grown = (_resident() - before) / 2**20
        note = f"{streams.stats.tokens} steps of streams, {streams.stats.restored} came back"
    return [Row(name="memory that steps have grown it by", value=grown, unit="MiB",
                target="<= 8", holds=grown <= 8, note=note)]  # fmt: skip


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    run(__doc__, measure)
