"""Tokens that see each other in blocks: found, proven from the mask, stepped block by block."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import intaglio
from intaglio.errors import InputError, PassError
from intaglio.runtime import Session

LEVEL = torch.tensor([0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3])
ENDS = (1, 4, 6, 11)


class Scales(nn.Module):
    """Attention within a level, or to all levels up to it, beside a running sum."""

    level: Tensor

    def __init__(self, *, earlier: bool = False) -> None:
        super().__init__()
        self.earlier = earlier
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.places = nn.Embedding(len(LEVEL), 8)
        self.register_buffer("level", LEVEL)

    def forward(self, x: Tensor) -> Tensor:
        level = self.level[: x.shape[1]]
        x = x + self.places.weight[: x.shape[1]]
        mask = level[:, None] >= level if self.earlier else level[:, None] == level
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return mixed + x.cumsum(1)


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "earlier"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("blocks") / "b"
    module = Scales(earlier=request.param)
    report = intaglio.export(
        module, path, inputs={"x": torch.randn(2, 7, 8)}, steps=11, check_passes=True
    )
    main = report.manifest.main
    assert report.parity is not None
    assert report.parity.splits == ("1 + 3 + 2 + 5", "1 x 11", "4 + 7")
    assert not main.whole
    assert main.limits.ends == ENDS
    assert {s.op for s in main.states} == {"cumulative_sum", *["attention"] * request.param}
    torch.save(module, path.parent / "module.pt")
    return path


def test_blocks_in_any_groups_give_what_the_whole_gives(exported: Path) -> None:
    """For each way to cut at the ends, and rows that stand at different blocks."""
    module = torch.load(exported.parent / "module.pt", weights_only=False)
    x = torch.randn(3, 11, 8)
    with torch.no_grad():
        wanted = module(x).numpy()
    session = Session.load(exported)
    for split in ((1, 3, 2, 5), (4, 7), (6, 5)):
        session.state.reset()
        begin = 0
        for count in split:
            part = x[:, begin : begin + count].numpy()
            (got,) = session.step({"x": part}).values()
            np.testing.assert_allclose(got, wanted[:, begin : begin + count], atol=1e-5)
            begin += count
    session.state.reset()
    (got,) = session.step({"x": x[:, :6].numpy()}, lengths=[1, 6, 4]).values()
    for row, length in enumerate((1, 6, 4)):
        np.testing.assert_allclose(got[row, :length], wanted[row, :length], atol=1e-5)
    following = np.zeros((3, 5, 8), np.float32)
    for row, (begin, count) in enumerate(((1, 3), (6, 5), (4, 2))):
        following[row, :count] = x[row, begin : begin + count].numpy()
    (got,) = session.step({"x": following}, lengths=[3, 5, 2]).values()
    for row, (begin, count) in enumerate(((1, 3), (6, 5), (4, 2))):
        np.testing.assert_allclose(got[row, :count], wanted[row, begin : begin + count], atol=1e-5)


def test_a_part_of_a_block_is_refused(exported: Path) -> None:
    """With how many tokens to give; and the state stays as it was."""
    session = Session.load(exported)
    session.step({"x": np.zeros((2, 1, 8), np.float32)})
    said = r"row 0 has had 1: .*Give 3 tokens, or 5 for two blocks"
    for _ in range(2):
        with pytest.raises(InputError, match=said):
            session.step({"x": np.zeros((2, 2, 8), np.float32)})
    with pytest.raises(InputError, match="row 0 has had 1"):
        session.step({"x": np.zeros((2, 3, 8), np.float32)}, lengths=[3, 1])
    assert session.state.past_length.tolist() == [1, 1]
    session.step({"x": np.zeros((2, 3, 8), np.float32)})


class All(nn.Module):
    """Every token sees all, by a table."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(12, 12, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        y, time = x[:, None], x.shape[1]
        seen = self.mask[:time, :time]
        return F.scaled_dot_product_attention(y, y, y, attn_mask=seen)[:, 0]


class Chunks(nn.Module):
    """A level that follows from the position without a table."""

    def forward(self, x: Tensor) -> Tensor:
        level = torch.arange(x.shape[1]) // 3
        y = x[:, None]
        return F.scaled_dot_product_attention(y, y, y, attn_mask=level[:, None] == level)[:, 0]


@pytest.mark.parametrize("module", [All(), Chunks()], ids=["all", "chunks"])
def test_a_mask_of_no_known_blocks_is_not_stepped(module: nn.Module, tmp_path: Path) -> None:
    """One that sees all is found whole; of one without a table the ends are not known."""
    options = {"inputs": {"x": torch.randn(2, 7, 8)}, "verify": False}
    if isinstance(module, All):
        report = intaglio.export(module, tmp_path / "b", **options)  # type: ignore[arg-type]
        assert report.manifest.main.whole
    else:
        with pytest.raises(PassError, match="see later ones of their own block alone"):
            intaglio.export(module, tmp_path / "b", **options)  # type: ignore[arg-type]
        report = intaglio.export(module, tmp_path / "b", whole=True, **options)  # type: ignore[arg-type]
        assert report.manifest.main.whole
