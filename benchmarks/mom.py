"""What several memories recall, against one state as large and one as cheap to update.

    python benchmarks/mom.py [--quick] [--trained PAIRS [--seeds N]] [--json]

Associative recall without training: N random unit keys with random values are written by the delta
rule, into one state, into four of which a fixed random router picks one for each key, and into
states as large as the four, with longer keys or with values that a random map made longer.  The
share of keys whose nearest value is their own; means of 8 draws.

With `--trained` layers are trained to recall instead, one layer each with embeddings and a head:
tokens are that many pairs of a key and a value, then these keys alone in another order.  The
mixture is the paper's, four memories of which the router picks two, and a shared one; beside it are
Gated DeltaNets of one state, as large as a memory, as what a token changes, and as all memories,
the latter two with longer keys and with longer values.  All have the same steps, rate and seeds,
and the router the loss of the published code that has memories used alike; of several seeds the
mean is told, and each in the note.
"""

import argparse
import sys
import time
from dataclasses import replace

import torch
from evidence import Row, run
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.models.mom import Config, MixtureOfMemories
from intaglio.models.parts.language_layers import RMSNorm
from intaglio.models.parts.linear_mixers import GatedDeltaNet, Heads
from intaglio.ops import linear_attention

KEY, VALUE, MEMORIES = 32, 32, 4
COUNTS = (32, 64, 128)
DRAWS = 8
SMALL, PICKED, ANSWERS, HIDDEN = 16, 2, 16, 64  # of what is trained
STEPS, QUICK_STEPS, BATCH, RATE, WARMUP = 1500, 20, 16, 1e-2, 50
BALANCE = 0.01  # of the loss that has memories used alike, as published configs have it
HELD_OUT = 256


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--trained", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    options, sys.argv[1:] = parser.parse_known_args()
    if options.trained is None:
        run(__doc__, measure)
    else:
        chosen = ["--trained", str(options.trained)]
        if options.seeds != 1:
            chosen += ["--seeds", str(options.seeds)]
        run(__doc__, lambda quick: trained(options.trained, options.seeds, quick), chosen)


def measure(quick: bool) -> list[Row]:
    """A row for each number of keys and kind of memory."""
    torch.set_num_threads(1)
    draws = 2 if quick else DRAWS
    rows = []
    for count in COUNTS:
        single = _mean(count, KEY, 1, draws)
        several = _mean(count, KEY, MEMORIES, draws)
        rows += [
            _row(count, f"one state of {KEY} x {VALUE}", single, KEY * VALUE),
            replace(
                _row(
                    count,
                    f"{MEMORIES} memories of {KEY} x {VALUE}, one picked",
                    several,
                    KEY * VALUE,
                ),
                target=f"> {single:.3f}",
                holds=several > single,
                against="one state as cheap to update",
            ),
        ]
        for key, times in ((KEY * MEMORIES, 1), (KEY, MEMORIES)):
            large = _mean(count, key, 1, draws, times)
            rows.append(
                _row(count, f"one state of {key} x {VALUE * times}", large, KEY * VALUE * MEMORIES)
            )
    return rows


def _row(count: int, name: str, value: float, changed: int) -> Row:
    return Row(
        name=f"{count} keys: {name}",
        value=round(value, 3),
        unit="recalled",
        note=f"{changed} numbers of state change with each key",
    )


def _mean(count: int, size: int, memories: int, draws: int, times: int = 1) -> float:
    return sum(_recalled(count, size, memories, draw, times) for draw in range(draws)) / draws


@torch.no_grad()
def _recalled(count: int, size: int, memories: int, seed: int, times: int) -> float:
    """The share of `count` keys of `size` entries that are read right, with longer values."""
    generator = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(count, size, generator=generator), dim=-1)
    values = torch.randn(count, VALUE, generator=generator)
    router = torch.randn(size, memories, generator=generator)
    if times != 1:
        values = values @ torch.randn(VALUE, VALUE * times, generator=generator)
    mask = F.one_hot((keys @ router).argmax(-1), memories).float()
    many = [x[None, :, None].expand(-1, -1, memories, -1).flatten(2) for x in (keys, values)]
    _, state = linear_attention(
        many[0],
        many[0],
        many[1],
        beta=mask[None],
        update_rule="delta",
        q_num_heads=memories,
        kv_num_heads=memories,
        scale=1.0,
    )
    read = torch.einsum("nk,mkv,nm->nv", keys, state[0], mask)
    nearest = torch.cdist(read, values).argmin(-1)
    return float((nearest == torch.arange(count)).float().mean())


class Recaller(nn.Module):
    """One mixer between the embeddings of pairs and the scores of values."""

    def __init__(self, mixer: nn.Module, keys: int) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(keys, HIDDEN), nn.Embedding(ANSWERS + 1, HIDDEN)
        self.before, self.behind = RMSNorm(HIDDEN, 1e-6), RMSNorm(HIDDEN, 1e-6)
        self.mixer, self.head = mixer, nn.Linear(HIDDEN, ANSWERS)

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        """Scores [B, T, values] of keys and values [B, T], `ANSWERS` for none."""
        x = self.key(keys) + self.value(values)
        scores: Tensor = self.head(self.behind(self.mixer(self.before(x))))
        return scores


def trained(pairs: int, seeds: int, quick: bool) -> list[Row]:
    """A row for the mixture and for each state beside it."""
    torch.set_num_threads(1)
    mixture = f"{MEMORIES} memories of {SMALL} x {SMALL}, two picked, and a shared one"
    ours = _learnt(pairs, mixture, (SMALL, SMALL), seeds, quick, several=True)
    rows = [ours]
    for what, times in (("a memory", 1), ("what a token changes", PICKED + 1),
                        ("all memories", MEMORIES + 1)):  # fmt: skip
        for key, value in dict.fromkeys(((SMALL * times, SMALL), (SMALL, SMALL * times))):
            name = f"one state of {key} x {value}, as {what}"
            row = _learnt(pairs, name, (key, value), seeds, quick, several=False)
            below = row.value < ours.value
            rows.append(
                replace(row, target=f"< {ours.value:.3f}", holds=below, against="the mixture")
            )
    return rows


def _learnt(
    pairs: int, name: str, size: tuple[int, int], seeds: int, quick: bool, *, several: bool
) -> Row:
    start = time.process_time()
    found = [_right(pairs, size, seed, quick, several=several) for seed in range(seeds)]
    each = ", ".join(f"{share:.3f}" for share, _ in found)
    (parameters,) = {count for _, count in found}
    steps, spent = QUICK_STEPS if quick else STEPS, (time.process_time() - start) / seeds
    return Row(
        name=f"{pairs} pairs, trained: {name}",
        value=round(sum(share for share, _ in found) / seeds, 3),
        unit="recalled",
        note=f"{parameters:,} parameters, {steps} steps, {spent:.0f} s"
        + (f"; {each}" if seeds > 1 else ""),
    )


def _right(
    pairs: int, size: tuple[int, int], seed: int, quick: bool, *, several: bool
) -> tuple[float, int]:
    """The share of values that are told right after training, and the mixer's parameters."""
    torch.manual_seed(seed)
    heads = Heads(
        hidden_size=HIDDEN,
        num_heads=1,
        num_kv_heads=1,
        key_size=size[0],
        value_size=size[1],
        conv_size=4,
    )
    mixer: nn.Module = GatedDeltaNet(heads)
    routed: list[Tensor] = []
    if several:
        mixer = MixtureOfMemories(heads, Config(num_memories=MEMORIES, top_k=PICKED))
        mixer.gate.register_forward_hook(lambda _, __, logits: routed.append(logits))
    net, steps = Recaller(mixer, 2 * pairs), QUICK_STEPS if quick else STEPS
    generator = torch.Generator().manual_seed(100 + seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 - 0.9 * step / steps)
    )
    for _ in range(steps):
        keys, values, wanted = _batch(pairs, BATCH, generator)
        scores = net(keys, values)[:, pairs:].flatten(0, 1)
        optimizer.zero_grad()
        loss = F.cross_entropy(scores, wanted.flatten()) + BALANCE * sum(map(_imbalance, routed))
        routed.clear()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        keys, values, wanted = _batch(pairs, HELD_OUT, generator)
        right = (net(keys, values)[:, pairs:].argmax(-1) == wanted).float().mean()
    return float(right), sum(parameter.numel() for parameter in mixer.parameters())


def _imbalance(logits: Tensor) -> Tensor:
    """How unlike memories are used, by logits [B, T, memories]: Fedus et al. 2021, equation 4."""
    shares = logits.softmax(-1)
    picked = F.one_hot(shares.topk(PICKED, -1).indices, MEMORIES).float().sum(-2)
    return MEMORIES * (picked.mean((0, 1)) * shares.mean((0, 1))).sum()


def _batch(pairs: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [B, 2 pairs], and the values wanted of the second half."""
    keys = torch.rand(rows, 2 * pairs, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(ANSWERS, (rows, pairs), generator=generator)
    order = torch.rand(rows, pairs, generator=generator).argsort(1)
    none = torch.full_like(values, ANSWERS)
    asked = keys.gather(1, order)
    return torch.cat((keys, asked), 1), torch.cat((values, none), 1), values.gather(1, order)


if __name__ == "__main__":
    main()
