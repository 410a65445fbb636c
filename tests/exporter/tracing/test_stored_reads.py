"""A cache that a module writes to and reads back in one call is what was written."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import IntaglioError
from intaglio.exporter.export import export
from intaglio.runtime import Session

HEADS, SIZE, ROOM = 2, 8, 40


class Caching(nn.Module):
    """Attention that keeps keys and values as the published code of Llama does."""

    def __init__(self, *, buffers: bool) -> None:
        super().__init__()
        width = HEADS * SIZE
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.cache_k: Tensor
        self.cache_v: Tensor
        for name in ("cache_k", "cache_v"):
            cache = torch.zeros(8, ROOM, HEADS, SIZE)
            if buffers:
                self.register_buffer(name, cache)
            else:
                setattr(self, name, cache)

    def forward(self, x: Tensor, start_pos: int, mask: Tensor | None) -> Tensor:
        rows, count, _ = x.shape
        q, k, v = (part(x).view(rows, count, HEADS, SIZE) for part in (self.q, self.k, self.v))
        self.cache_k, self.cache_v = self.cache_k.to(q), self.cache_v.to(q)
        self.cache_k[:rows, start_pos : start_pos + count] = k
        self.cache_v[:rows, start_pos : start_pos + count] = v
        keys = self.cache_k[:rows, : start_pos + count].transpose(1, 2)
        values = self.cache_v[:rows, : start_pos + count].transpose(1, 2)
        scores = torch.matmul(q.transpose(1, 2), keys.mT) / math.sqrt(SIZE)
        weights = F.softmax(scores if mask is None else scores + mask, -1)
        return torch.matmul(weights, values).transpose(1, 2).flatten(2)


class Decoder(nn.Module):
    def __init__(self, *, buffers: bool) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(31, HEADS * SIZE), Caching(buffers=buffers)

    def forward(self, tokens: Tensor, start_pos: int = 0) -> Tensor:
        count, mask = tokens.shape[1], None
        if count > 1:
            mask = torch.full((count, count), -torch.inf).triu(1)
            mask = torch.hstack([torch.zeros(count, start_pos), mask])
        x = self.embed(tokens)
        y: Tensor = x + self.layer(x, start_pos, mask)
        return y


@pytest.mark.parametrize("buffers", [False, True])
def test_a_model_that_keeps_its_own_cache_gets_one_of_the_engine(
    buffers: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Decoder(buffers=buffers).eval()
    example = {"tokens": torch.randint(31, (2, 9))}
    axes: dict[str, list[int | str]] = {"tokens": ["batch=..8", "time"]}
    report = export(module, tmp_path / "bundle", inputs=example, axes=axes, steps=9)
    session, tokens = Session.load(tmp_path / "bundle"), torch.randint(31, (3, 8))
    with torch.no_grad():
        wanted = module(tokens).numpy()

    assert report.manifest.main.limits.max_context == ROOM
    cuts = ((0, 5), (5, 6), (6, 8))
    found = [session.step({"tokens": tokens[:, a:b].numpy()}) for a, b in cuts]
    got = np.concatenate([next(iter(each.values())) for each in found], 1)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


class Kept(nn.Module):
    """A buffer that is read before it is written, beside its place, or when its source changed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.kept: Tensor
        self.register_buffer("kept", torch.zeros(8, ROOM, 4))

    def forward(self, x: Tensor) -> Tensor:
        rows, count, _ = x.shape
        place, y, kept = slice(0, count), x * 2, self.kept
        before = kept[:rows, place].clone()
        kept[:rows, place] = y
        if self.kind == "before":
            return before + x
        if self.kind == "beside":
            return kept[:rows, : count + 1].sum(1, keepdim=True) + x
        if self.kind == "source":
            y.add_(1)
        return kept[:rows, place] + x


AXES: dict[str, list[int | str]] = {"x": ["batch=..8", "time=..20", 4]}


@pytest.mark.parametrize("kind", ["before", "beside", "source"])
def test_what_an_earlier_call_left_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(IntaglioError):
        export(Kept(kind), tmp_path / "bundle", inputs={"x": torch.randn(2, 9, 4)}, axes=AXES)


def test_what_was_written_is_read_there(tmp_path: Path) -> None:
    module, x = Kept("plain"), torch.randn(2, 5, 4)
    with torch.no_grad():
        wanted = module(x).numpy()
    export(module, tmp_path / "bundle", inputs={"x": torch.randn(2, 9, 4)}, axes=AXES, steps=9)
    got = Session.load(tmp_path / "bundle").step({"x": x.numpy()})
    np.testing.assert_allclose(next(iter(got.values())), wanted, atol=1e-6)
