"""What a profile shows to be slower than need be, and the choice that is known to be faster.

Each stands on what was measured: the share of a step that goes there, and that it does so because
of the choice (benchmarks/step_latency.py, low_bit_layer.py and streams.py time the alternatives).
"""

from collections.abc import Iterator, Sequence

from intaglio.state import Layout

from .ops import OpProfile, OpSum
from .report import Contender, Latencies

SHARE = 0.25  # of a step's operators, from which it is worth a word
ROOM = 1.5  # times the tokens there are, from which the room of caches is large
BOUND = 0.5  # of what the memory gives, from which products wait for their weights
WIDE = 16  # bits of a weight from which fewer help
PRODUCTS = ("Gemm", "FusedMatMul", "MatMul")


def advice(measured: Sequence[Contender]) -> list[str]:
    """A sentence for each choice of a contestant that another would beat."""
    return [f"{entry.name}: {said}" for entry in measured for said in _of(entry)]


def _of(entry: Contender) -> Iterator[str]:
    steps = [ops for ops in entry.ops if ops.kind == "step"]
    layouts = {spec.layout for spec in entry.states}
    for timing, ops in _slowest(entry, steps):
        if Layout.STATIC in layouts:
            yield from _room(timing, ops)
        if Layout.GROW in layouts:
            yield from _copies(ops)
        if entry.bits is not None and entry.bits >= WIDE:
            yield from _weights(ops)


def _slowest(entry: Contender, steps: Sequence[OpProfile]) -> list[tuple[Latencies, OpProfile]]:
    """The step at the longest context, which shows most, with its time."""
    pairs = [
        (timing, ops)
        for timing in entry.timings
        for ops in steps
        if timing.phase.kind == "step"
        and (timing.phase.graph, timing.phase.tokens) == (ops.graph, ops.tokens)
    ]
    return pairs[-1:]


def _room(timing: Latencies, ops: OpProfile) -> Iterator[str]:
    """Attention over a buffer reads all of it, whatever is in it."""
    needed = ops.tokens + 1
    share = _share(ops, ("Attention",))
    if timing.capacity is not None and timing.capacity >= ROOM * needed and share >= SHARE:
        yield (
            f"Attention takes {share:.0%} of a step at {ops.tokens}, and reads the whole room of "
            f"its caches, {timing.capacity} tokens. With --capacity {needed}, or "
            f"Session.load(capacity={needed}), it reads {needed}."
        )


def _copies(ops: OpProfile) -> Iterator[str]:
    """A cache as long as its tokens is written anew for each of them."""
    share = _share(ops, ("Attention", "Concat"))  # which of them copies depends on the lowering
    if share >= SHARE:
        yield (
            f"Attention and its caches take {share:.0%} of a step at {ops.tokens}: caches that "
            "grow are copied for each token. Exported with --kv static, they are written in place."
        )


def _weights(ops: OpProfile) -> Iterator[str]:
    """Products of one row wait for their weights."""
    found = [each for each in ops.by_op() if each.op in PRODUCTS]
    share = _share(ops, PRODUCTS)
    if share < SHARE or ops.ceilings is None or not all(_moved(each) for each in found):
        return
    reached = sum(_moved(each) for each in found) / ops.ceilings.bytes
    reached /= sum(each.milliseconds for each in found) / 1e3
    if reached >= BOUND:
        yield (
            f"Products take {share:.0%} of a step at {ops.tokens}, at {reached:.0%} of what the "
            "memory gives: they wait for their weights. Exported with --pass rtn:bits=4, or "
            "gptq with --calib FILE, they read an eighth of those bytes."
        )


def _moved(each: OpSum) -> int:
    return 0 if each.work is None else each.work.bytes


def _share(ops: OpProfile, names: Sequence[str]) -> float:
    time = sum(each.milliseconds for each in ops.by_op() if each.op in names)
    return time / (ops.kernels or 1)
