"""A training step of linear attention against softmax attention of equal width, at T = 512.

    python benchmarks/op_training.py [--quick] [--json]

Both layers have the same projections of query, key, value and output; the recurrent ones also
project what their rule needs.  Forward and backward pass, float32, one thread, in turns.
"""

import statistics
from collections.abc import Callable

import torch
from evidence import Row, paired, run
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.ops import linear_attention

BATCH, TIME, WIDTH, HEADS = 4, 512, 256, 4
RULES = {
    "linear": ("linear", False),
    "gated, decay per head": ("gated", False),
    "gated, decay per key": ("gated", True),
    "delta": ("delta", False),
    "gated delta, decay per head": ("gated_delta", False),
    "gated delta, decay per key": ("gated_delta", True),
}


class Softmax(nn.Module):
    """Causal softmax attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, width] along T."""
        q, k, v = (
            y.reshape(*y.shape[:2], HEADS, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class Linear(nn.Module):
    """Linear attention by one of the rules."""

    def __init__(self, rule: str, *, per_key: bool) -> None:
        super().__init__()
        self.rule = rule
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, WIDTH if per_key else HEADS) if "gated" in rule else None
        self.rate = nn.Linear(WIDTH, HEADS) if "delta" in rule else None
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, width] along T."""
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.rate is not None:
            k = F.normalize(k.reshape(*k.shape[:2], HEADS, -1), dim=-1).flatten(2)
        y, _ = linear_attention(
            q,
            k,
            v,
            decay=None if self.gate is None else F.logsigmoid(self.gate(x)) / 16,
            beta=None if self.rate is None else self.rate(x).sigmoid(),
            update_rule=self.rule,
            q_num_heads=HEADS,
            kv_num_heads=HEADS,
        )
        out: Tensor = self.out(y)
        return out


def training_step(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward pass."""

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        torch.autograd.backward(layer(x).square().mean())

    return step


def measure(quick: bool) -> list[Row]:
    """Speed of each rule relative to softmax: median of the ratios of pairs."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(BATCH, TIME, WIDTH)
    softmax = training_step(Softmax(), x)
    rows = []
    for name, (rule, per_key) in RULES.items():
        ours, theirs = paired(
            training_step(Linear(rule, per_key=per_key), x), softmax, 5 if quick else 20, warmup=2
        )
        speed = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        rows.append(
            Row(
                name=name,
                value=speed,
                unit="of softmax's speed",
                target=">= 0.5",
                holds=speed >= 0.5,
                against="torch.nn.functional.scaled_dot_product_attention",
                note=f"batch {BATCH}, T = {TIME}, {HEADS} heads of {WIDTH // HEADS}",
            )
        )
    return rows


if __name__ == "__main__":
    run(__doc__, measure)
