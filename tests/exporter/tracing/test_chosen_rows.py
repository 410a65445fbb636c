"""Experts that are handed the rows a router chose are computed for all rows, and chosen then."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import TraceError
from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.chosen_rows import FINDS, compute_all_rows
from intaglio.exporter.tracing.trace import trace
from intaglio.runtime import Session

WIDTH, EXPERTS = 6, 3


class Routed(nn.Module):
    """`mix` of a module, rows [B T, WIDTH] and what its router says of each expert."""

    def __init__(self, mix: "Mix") -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, WIDTH))
            for _ in range(EXPERTS)
        )
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        return self.mix(self, rows, self.router(rows)).view_as(x)


Mix = Callable[[Routed, Tensor, Tensor], Tensor]


def read_and_written(net: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """As Mistral's reference has it."""
    weights, chosen = logits.topk(2)
    weights, y = weights.softmax(1), torch.zeros_like(x)
    for e, expert in enumerate(net.experts):
        rows, nth = torch.where(chosen == e)
        y[rows] += weights[rows, nth, None] * expert(x[rows])
    return y


def added(net: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """As Mixtral was in Hugging Face's library: columns first, rows behind them."""
    weights, chosen = logits.softmax(-1).topk(2, dim=-1)
    y = torch.zeros_like(x)
    masks = F.one_hot(chosen, EXPERTS).permute(2, 1, 0)
    for e in range(EXPERTS):
        nth, rows = torch.where(masks[e])
        current = net.experts[e](x[None, rows].reshape(-1, WIDTH)) * weights[rows, nth, None]
        y.index_add_(0, rows, current.to(x.dtype))
    return y


def by_places(net: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """Switch: one expert a row, added without writing in place."""
    weights, y = logits.softmax(-1), x
    chosen = weights.argmax(-1)
    for e, expert in enumerate(net.experts):
        (rows,) = (chosen == e).nonzero(as_tuple=True)
        y = y.index_add(0, rows, expert(x[rows]) * weights[rows, e].unsqueeze(-1))
    return y


def by_masks(net: Routed, x: Tensor, logits: Tensor) -> Tensor:
    weights, chosen = logits.softmax(-1).max(-1)
    y = torch.zeros_like(x)
    for e, expert in enumerate(net.experts):
        mask = chosen == e
        y[mask] = expert(x[mask]) * weights[mask][:, None]
    return y


def squeezed(net: Routed, x: Tensor, logits: Tensor) -> Tensor:
    chosen, y = logits.argmax(-1), x
    for e, expert in enumerate(net.experts):
        rows = torch.nonzero(chosen == e).squeeze(-1)
        y = y.index_add(0, rows, expert(x[rows]))
    return y


def accumulated(net: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """More than one column of a row may be chosen, each of which adds."""
    high = logits > 0
    y = torch.zeros_like(x)
    rows, column = torch.where(high)
    return y.index_put_((rows,), net.experts[0](x[rows]) * logits[rows, column, None], True)


def written_in_part(net: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """A part of what was chosen is written to, and all of it read."""
    (rows,) = torch.where(logits[:, 0] > 0)
    chosen = net.experts[0](x[rows])
    chosen[:, 0] += 1
    return x.index_add(0, rows, chosen)


def of_a_changed_mask(_: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """By the time that rows are written, the mask is another."""
    mask, y = logits[:, 0] > 0, x.clone()
    (rows,) = torch.where(mask)
    mask.logical_not_()
    y[rows] = x[rows] * 2
    return y


def overwritten(net: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """Which of several columns is written last, PyTorch leaves open."""
    y = torch.zeros_like(x)
    rows, column = torch.where(logits > 0)
    y[rows] = net.experts[0](x[rows]) * logits[rows, column, None]
    return y


def centred(_: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """The mean is that of chosen rows alone."""
    (rows,) = torch.where(logits[:, 0] > 0)
    chosen = x[rows]
    return x.index_add(0, rows, chosen - chosen.mean(0, keepdim=True))


def counted(net: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """How many were chosen is asked beside."""
    (rows,) = torch.where(logits[:, 0] > 0)
    return x.index_add(0, rows, net.experts[0](x[rows])) / (1 + rows.shape[0])


@pytest.mark.parametrize(
    "mix", [read_and_written, added, by_places, by_masks, squeezed, accumulated]
)
def test_chosen_rows_are_computed_for_all(mix: Mix, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Routed(mix), torch.randn(3, 9, WIDTH)

    report = export(module, tmp_path / "bundle", inputs={"x": x[:2, :7]}, steps=24, verify=False)

    assert any("computes each time all of them" in note for note in report.notes)
    session = Session.load(tmp_path / "bundle")
    found = [session.step({"x": x[:, t : t + 1].numpy()})["output"] for t in range(9)]
    wanted = module(x).detach().numpy()
    np.testing.assert_allclose(np.concatenate(found, 1), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mix", [overwritten, centred, counted, written_in_part, of_a_changed_mask])
def test_what_meets_other_chosen_rows_is_left(mix: Mix) -> None:
    shapes = {"x": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    x = torch.randn(2, 7, WIDTH)
    program = torch.export.export(Routed(mix), (), {"x": x}, dynamic_shapes=shapes, strict=False)

    compute_all_rows(program)

    assert any(node.target in FINDS for node in program.graph.nodes)


class Returned(nn.Module):
    """What is added to is what is returned, by whatever name, and so are chosen rows themselves."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (rows,) = torch.where(x[:, 0] > 0)
        added = x[rows] * 2
        return x.index_add(0, rows, added), added


def test_what_is_returned_may_be_what_rows_are_added_to() -> None:
    x = torch.randn(7, WIDTH)
    shapes = {"x": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(Returned(), (), {"x": x}, dynamic_shapes=shapes, strict=False)

    compute_all_rows(program)

    torch.testing.assert_close(program.module()(x=x), Returned()(x))


def asked(net: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """makeMoE: experts without a row are skipped; masks of one shape for rows, another for y."""
    top, chosen = logits.topk(2)
    gates = torch.full_like(logits, -torch.inf).scatter(-1, chosen, top).softmax(-1)
    y = torch.zeros_like(x).view(1, *x.shape)
    for e, expert in enumerate(net.experts):
        mask = (chosen == e).any(dim=-1)[None]
        rows = mask.view(-1)
        if rows.any():
            y[mask] += (expert(x[rows]) * gates[rows, e].unsqueeze(1)).squeeze(1)
    return y[0]


def by_length(net: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """Of the places of a mask."""
    chosen, y = logits.argmax(-1), torch.zeros_like(x)
    for e, expert in enumerate(net.experts):
        (rows,) = torch.where(chosen == e)
        if len(rows) == 0:
            continue
        y[rows] = expert(x[rows])
    return y


def by_size(net: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """Of what a mask picks."""
    y = torch.zeros_like(x)
    for e, expert in enumerate(net.experts):
        mask = logits[:, e] > 0
        picked = x[mask]
        if picked.numel() > 0:
            y[mask] += expert(picked)
    return y


@pytest.mark.parametrize("mix", [asked, by_length, by_size])
def test_experts_without_rows_may_be_skipped(mix: Mix, tmp_path: Path) -> None:
    """Token by token most of them are."""
    test_chosen_rows_are_computed_for_all(mix, tmp_path)


def beside(_: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """What is done if any is chosen is done to all rows."""
    mask, y = logits[:, 0] > 0, x.clone()
    if mask.any():
        y[mask] = x[mask] * 2
        y = y + 1
    return y


def of_another(_: Routed, x: Tensor, logits: Tensor) -> Tensor:
    mask, y = logits[:, 0] > 0, x.clone()
    if mask.any():
        other = logits[:, 1] > 0
        y[other] = x[other] * 2
    return y


def otherwise(_: Routed, x: Tensor, logits: Tensor) -> Tensor:
    mask, y = logits[:, 0] > 0, x.clone()
    if mask.any():
        y[mask] = x[mask] * 2
    else:
        y = y + 1
    return y


def within(_: Routed, x: Tensor, logits: Tensor) -> Tensor:
    """The second question is asked where the first has an answer."""
    mask, other, y = logits[:, 0] > 0, logits[:, 1] > 0, x.clone()
    if mask.any():
        y[mask] = x[mask] * 2
        if other.any():
            y[other] = x[other] * 3
    return y


@pytest.mark.parametrize("mix", [beside, of_another, otherwise, within])
def test_what_does_something_without_any_row_is_refused(mix: Mix) -> None:
    source = load_source(Routed(mix), inputs={"x": torch.randn(2, 7, WIDTH)})
    with pytest.raises(TraceError, match=r"mask\.any\(\):.*depends on the values of tensors"):
        trace(source)


class Prompts(nn.Module):
    """Points by their labels, written in place as Segment Anything's encoder of prompts does."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.Parameter(torch.randn(2, WIDTH))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = x.sin()
        x[label == -1] = 0.0
        x[label == -1] += self.kinds[0]
        x[label == 1] += self.kinds[1]
        return x


def test_whole_inputs_are_written_where_masks_say(tmp_path: Path) -> None:
    """But for rows that meet weights, since products of all of them cost more."""
    given = {"x": torch.randn(2, 3, WIDTH), "label": torch.tensor([[0, 1, -1], [1, -1, 0]])}
    axes = {"x": f"batch,points,{WIDTH}", "label": "batch,points"}
    module = Prompts()
    report = export(module, tmp_path / "bundle", inputs=given, axes=axes)
    assert report.parity is not None
    assert report.parity.passed
    label = torch.randint(-1, 2, (3, 7))
    x = torch.randn(3, 7, WIDTH)
    got = Session.load(tmp_path / "bundle").step({"x": x.numpy(), "label": label.numpy()})
    np.testing.assert_allclose(got["output"], module(x, label).detach(), rtol=1e-5, atol=1e-6)

    shapes = {"x": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    x = torch.randn(2, 7, WIDTH)
    program = torch.export.export(
        Routed(read_and_written), (), {"x": x}, dynamic_shapes=shapes, strict=False
    )
    compute_all_rows(program, products=False)
    assert any(node.target in FINDS for node in program.graph.nodes)
