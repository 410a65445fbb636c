"""The lowering for ONNX Runtime against the graph of standard operators that it is made of.

    python benchmarks/lowering.py [--quick] [--only rules|systems] [--json]

One layer of linear attention, 16 heads of 64, one row, one thread, and diagonal state-space models:
as many channels and states of each as Mamba, S4D and HGRN have, and few.  These operators have no
kernel in ONNX Runtime, which runs their bodies, loops over tokens; both graphs of
the same bundle take turns on the same inputs and states, and their outputs are compared first.
Times are those of the one thread, whatever else the machine does.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from evidence import Row, paired, ratio, run
from torch import Tensor, nn
from torch.nn import functional as F

import intaglio
from intaglio.ops import diagonal_ssm, linear_attention
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
SYSTEMS = {  # kind, channels, states of each; ONNX Runtime's kernel takes the small ones
    "mamba, 1024 of 16": ("mamba", 1024, 16),
    "mamba, 64 of 4": ("mamba", 64, 4),
    "the same for all tokens, 512 of 64": ("lti", 512, 64),
    "gates, 1024 of 1": ("gates", 1024, 1),
    "gates, 256 of 1": ("gates", 256, 1),
}
NO_SLOWER = 0.95  # the kernel for the small ones, blocks of tokens for the others
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


class System(nn.Module):
    """A diagonal state-space model of one kind, what it reads given."""

    def __init__(self, kind: str, channels: int, states: int) -> None:
        super().__init__()
        self.kind = kind
        self.a = nn.Parameter(-torch.arange(1.0, states + 1).repeat(channels, 1))
        self.b, self.c = (nn.Parameter(torch.randn(channels, states)) for _ in range(2))

    def forward(
        self,
        input: Tensor,  # noqa: A002  the operator's name
        delta: Tensor | None = None,
        B: Tensor | None = None,
        C: Tensor | None = None,
    ) -> Tensor:
        """The output [B, T, channels], of inputs as `diagonal_ssm` has them."""
        if self.kind == "mamba":
            assert B is not None
            assert C is not None
            return diagonal_ssm(input, self.a, B, C, delta)[0]
        a = self.a if self.kind == "gates" else self.a / 100
        return diagonal_ssm(input, a, self.b, self.c, delta, discretization="none", lti=True)[0]


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", choices=("rules", "systems"))
    options, sys.argv[1:] = parser.parse_known_args()
    only = options.only
    run(__doc__, lambda quick: measure(quick, only), ["--only", only] if only else [])


def measure(quick: bool, only: str | None = None) -> list[Row]:
    """A row for each rule, or system, and number of tokens."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (rule, per_key) in RULES.items() if only != "systems" else ():
            inputs = partial(_inputs, rule, per_key=per_key)
            rows += _rows(name, Layer(rule), inputs, TARGETS, Path(folder), quick)
        for label, sizes in SYSTEMS.items() if only != "rules" else ():
            name, targets = f"DiagonalSSM, {label}", dict.fromkeys(TARGETS, NO_SLOWER)
            inputs = partial(_signals, *sizes)
            rows += _rows(name, System(*sizes), inputs, targets, Path(folder), quick)
    return rows


def _rows(
    name: str,
    layer: nn.Module,
    inputs: Callable[..., dict[str, Tensor]],
    targets: dict[int, float],
    folder: Path,
    quick: bool,
) -> Iterator[Row]:
    """A row for each number of tokens."""
    bundle = folder / name.replace(" ", "-")
    with quiet():
        intaglio.export(layer, bundle, inputs=inputs(7), steps=16)
    pair = _session(bundle, "ort/model.onnx"), _session(bundle, "model.onnx")
    for tokens, target in targets.items():
        count = min(tokens, 64) if quick else tokens
        yield _row(f"{name}, T = {count}", pair, inputs(count, rows=1), target)


def _row(name: str, pair: tuple[Any, Any], given: dict[str, Tensor], target: float) -> Row:
    feeds = {entry: x.numpy() for entry, x in given.items()}
    lowered, standard = (_call(session, feeds) for session in pair)
    ours, theirs = lowered()[0], standard()[0]
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if error > NEAR:
        raise SystemExit(f"{name}: the two graphs differ by {error:.1e}")
    pairs = 100 if ours.shape[1] == 1 else 9
    fast, slow = paired(lowered, standard, pairs, warmup=2, clock=time.thread_time)
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


def _signals(
    kind: str, channels: int, states: int, tokens: int, *, rows: int = 2
) -> dict[str, Tensor]:
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    made = {"input": normal(rows, tokens, channels)}
    if kind != "lti":
        made["delta"] = F.softplus(normal(rows, tokens, channels) - 2)
    if kind == "mamba":
        made |= {name: normal(rows, tokens, states) for name in ("B", "C")}
    return made


def _session(bundle: Path, graph: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = onnx.load(bundle / graph, load_external_data=False)
    onnx.load_external_data_for_model(model, str(bundle))  # all graphs share its weights
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _call(session: Any, given: dict[str, np.ndarray]) -> Callable[[], Any]:
    feeds = dict(given)
    for entry in session.get_inputs():
        if entry.name not in feeds:  # the state, at first
            shape = [d if isinstance(d, int) else 1 for d in entry.shape]
            kind = np.int64 if "int64" in entry.type else np.float32
            feeds[entry.name] = np.zeros(shape, kind)
    return lambda: session.run(None, feeds)


if __name__ == "__main__":
    main()
