"""The lowering for ONNX Runtime against the graph of standard operators that it is made of.

    python benchmarks/lowering.py [--quick] [--json]

One layer of linear attention, 16 heads of 64, one row, one thread.  The standard operator has no
kernel in ONNX Runtime, which runs its body, a loop over tokens; both graphs of the same bundle take
turns on the same inputs and states, and their outputs are compared first.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from evidence import Row, paired, ratio, run
from torch import Tensor, nn
from torch.nn import functional as F

import intaglio
from intaglio.ops import linear_attention
from intaglio.quiet import quiet

HEADS, SIZE = 16, 64
TARGETS = {512: 3.0, 1: 2.0}  # times as fast, by tokens
RULES = {
    "linear": ("linear", False),
    "gated, decay per head": ("gated", False),
    "gated, decay per key": ("gated", True),
    "delta": ("delta", False),
    "gated delta, decay per head": ("gated_delta", False),
    "gated delta, decay per key": ("gated_delta", True),
}
NEAR = 1e-4


class Layer(nn.Module):
    """Linear attention of one rule, what it multiplies given."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule = rule

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        decay: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> Tensor:
        """What each token reads [B, T, heads * size], of inputs as `linear_attention` has them."""
        y, _ = linear_attention(
            query,
            key,
            value,
            decay=decay,
            beta=beta,
            update_rule=self.rule,
            q_num_heads=HEADS,
            kv_num_heads=HEADS,
        )
        return y


def measure(quick: bool) -> list[Row]:
    """A row for each rule and number of tokens."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (rule, per_key) in RULES.items():
            bundle = Path(folder) / name.replace(" ", "-")
            with quiet():
                examples = _inputs(rule, 7, per_key=per_key)
                intaglio.export(Layer(rule), bundle, inputs=examples, steps=16)
            pair = _session(bundle / "ort" / "model.onnx"), _session(bundle / "model.onnx")
            for tokens, target in TARGETS.items():
                count = min(tokens, 64) if quick else tokens
                given = _inputs(rule, count, per_key=per_key, rows=1)
                rows.append(_row(f"{name}, T = {count}", pair, given, target))
    return rows


def _row(name: str, pair: tuple[Any, Any], given: dict[str, Tensor], target: float) -> Row:
    feeds = {entry: x.numpy() for entry, x in given.items()}
    lowered, standard = (_call(session, feeds) for session in pair)
    ours, theirs = lowered()[0], standard()[0]
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if error > NEAR:
        raise SystemExit(f"{name}: the two graphs differ by {error:.1e}")
    pairs = 100 if ours.shape[1] == 1 else 5
    fast, slow = paired(lowered, standard, pairs, warmup=2)
    speed = ratio(slow, fast)
    return Row(
        name=name,
        value=speed,
        unit="times the speed",
        target=f">= {target:g}",
        holds=speed >= target,
        against="the bundle's portable graph in ONNX Runtime",
        note=f"{1e3 * sorted(fast)[len(fast) // 2]:.3f} ms",
    )


def _inputs(rule: str, tokens: int, *, per_key: bool, rows: int = 2) -> dict[str, Tensor]:
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    made = {name: normal(rows, tokens, HEADS * SIZE) for name in ("query", "key", "value")}
    made["key"] = F.normalize(made["key"].unflatten(2, (HEADS, SIZE)), dim=-1).flatten(2)  # type: ignore[no-untyped-call]
    if "gated" in rule:
        made["decay"] = F.logsigmoid(normal(rows, tokens, HEADS * (SIZE if per_key else 1)) + 3)
    if "delta" in rule:
        made["beta"] = normal(rows, tokens, HEADS).sigmoid()
    return made


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _call(session: Any, given: dict[str, np.ndarray]) -> Callable[[], Any]:
    feeds = dict(given)
    for entry in session.get_inputs():
        if entry.name not in feeds:  # the state, at first
            shape = [d if isinstance(d, int) else 1 for d in entry.shape]
            kind = np.int64 if "int64" in entry.type else np.float32
            feeds[entry.name] = np.zeros(shape, kind)
    return lambda: session.run(None, feeds)


if __name__ == "__main__":
    run(__doc__, measure)
