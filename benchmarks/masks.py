"""Masks and biases of attention: each is exported and equal to PyTorch, or refused.

    python benchmarks/masks.py [--quick] [--json]

Every mask of `mask_cases` is exported and stepped over 2,000 tokens of two rows: all at once, one
by one, and in uneven parts; error(a, b) is max|a-b| / max|b| against the module's full forward.
What lets a token see a later one has to be refused, to take whole sequences alone, or to be stepped
in the blocks within which tokens see each other, whole.
Speed: a step of one token at a context of 4,096, of four layers under a general mask, beside the
same layers under the causal one.
"""

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from evidence import Row, paired, ratio, run
from mask_cases import LEAKS, MASKS, VOCABULARY, WRITTEN_OUT, Mask, Model
from torch import Tensor, nn
from torch.nn import functional as F

import intaglio
from intaglio.call_ends import last_end
from intaglio.errors import IntaglioError
from intaglio.exporter.proving.follow import splits_of
from intaglio.quiet import quiet
from intaglio.runtime import Session

LIMIT, AGAINST = 1e-4, "PyTorch, full forward"

Array = npt.NDArray[Any]


def measure(quick: bool) -> list[Row]:
    """Rows for every mask, the count of wrong ones, and speeds."""
    torch.set_num_threads(1)
    tokens = 700 if quick else 2000
    models = {name: Model(mask) for name, mask in MASKS.items()}
    models |= {f"written out: {n}": Model(attend=attend) for n, attend in WRITTEN_OUT.items()}
    leaks = {f"leak: {name}": Model(mask) for name, mask in LEAKS.items()}
    if quick:
        models, leaks = (dict(list(each.items())[::3]) for each in (models, leaks))
    rows = [_row(name, model, tokens, refused=False) for name, model in models.items()]
    rows += [_row(name, model, tokens, refused=True) for name, model in leaks.items()]
    wrong = sum(row.unit == "error" and not row.value <= LIMIT for row in rows)
    rows.append(Row(name="wrong", value=wrong, unit="", target="0", holds=wrong == 0))
    return rows + [_speed(name, 256 if quick else 4096) for name in ("sinks", "ALiBi", "documents")]


def _row(name: str, model: Model, tokens: int, *, refused: bool) -> Row:
    target = f"refused, or whole blocks and <= {LIMIT}" if refused else f"<= {LIMIT}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            session = _exported(model, Path(folder) / "bundle")
        except IntaglioError as why:
            return Row(
                name=name, value=1, unit="refused", target=target, holds=refused, note=str(why)
            )
        whole = bool(session.manifest.main.whole)
        ends = session.entry.limits.ends
        splits = splits_of(last_end(ends, tokens), ends) if ends else _splits(tokens)
        error = _error(session, model, [[tokens]] if whole else splits)
        note = ", ".join(f"{s.input} {list(s.shape)}" for s in session.entry.states)
        holds = (whole or bool(ends)) is refused and error <= LIMIT
        note = "whole sequences" if whole else f"whole blocks; {note}" if ends else note
        return Row(
            name=name, value=error, unit="error", target=target, holds=holds, against=AGAINST,
            note=note,
        )  # fmt: skip


def _exported(model: nn.Module, path: Path) -> Session:
    inputs = {"input_ids": torch.randint(VOCABULARY, (2, 9))}
    with quiet():
        intaglio.export(model.eval(), path, inputs=inputs, verify=False)
    return Session.load(path, threads=1)


def _error(session: Session, model: nn.Module, splits: Sequence[Sequence[int]]) -> float:
    tokens = sum(splits[0])
    ids = torch.randint(VOCABULARY, (2, tokens), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = model(ids).numpy()
    found = [_stepped(session, ids.numpy(), parts) for parts in splits]
    return max(float(np.abs(got - wanted).max() / np.abs(wanted).max()) for got in found)


def _splits(tokens: int) -> list[list[int]]:
    uneven = [1, 298, 1, 1, 1, 299, 7]
    return [[tokens], [1] * tokens, [*uneven, tokens - sum(uneven)]]


def _stepped(session: Session, ids: Array, parts: Sequence[int]) -> Array:
    if session.manifest.main.states:
        session.state.reset()
    ends = np.cumsum([0, *parts])
    steps = [ids[:, a:b] for a, b in pairwise(ends)]
    return np.concatenate([session.step({"input_ids": x})["logits"] for x in steps], 1)


class _Decoder(nn.Module):
    """Four layers of 8 heads of 64, with or without a mask of their own."""

    def __init__(self, mask: Mask | None) -> None:
        super().__init__()
        self.mask = mask
        self.embed = nn.Embedding(VOCABULARY, 512)
        self.layers = nn.ModuleList(nn.Linear(512, 3 * 512) for _ in range(4))

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.embed(input_ids)
        i = torch.arange(input_ids.shape[1])
        mask = None if self.mask is None else self.mask(i[:, None], i[None], input_ids)
        for layer in self.layers:
            q, k, v = (y.unflatten(-1, (8, 64)).transpose(1, 2) for y in layer(x).chunk(3, -1))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
            x = x + y.transpose(1, 2).flatten(2)
        return x


SPEEDS: dict[str, Mask] = {
    "sinks": lambda i, j, _: (j <= i) & ((i - j < 3000) | (j < 4)),
    "ALiBi": lambda i, j, _: torch.where(
        j <= i, -(i - j) * (torch.arange(1, 9) / 64)[:, None, None], float("-inf")
    ),
    "documents": MASKS["documents"],
}


def _speed(name: str, context: int) -> Row:
    torch.manual_seed(0)
    sessions = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, mask in (("general", SPEEDS[name]), ("causal", None)):
            session = _exported(_Decoder(mask), Path(folder) / kind)
            session.step({"input_ids": np.ones((1, context), np.int64)})
            sessions.append(session)
        one = {"input_ids": np.ones((1, 1), np.int64)}
        times = paired(lambda: sessions[0].step(one), lambda: sessions[1].step(one), 60)
    value = ratio(*times)
    return Row(
        name=f"step under a general mask: {name}", value=value, unit="x", target="<= 1.25",
        holds=value <= 1.25, against=f"causal, context of {context}",
    )  # fmt: skip


if __name__ == "__main__":
    run(__doc__, measure)
