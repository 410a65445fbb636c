"""Entries that are chosen by sorting, under derivatives of each row: any number of rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap

from intaglio.exporter.export import export
from intaglio.exporter.tracing.plain_choices import CHOICES, is_batched
from intaglio.runtime.session import Session


class Sorted(nn.Module):
    """Rows of Jacobians, and gradients of what sorting, the largest and their places choose."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # [rows, 6]
        def falling(x: Tensor) -> Tensor:
            return x.sort(descending=True).values[:4].cumsum(-1).square()

        def chosen(x: Tensor) -> Tensor:
            best = x[1:].square().topk(3).values * x.min(0, keepdim=True).values
            return (best * x.gather(0, x.argsort()[:3])).sum() + x.square().max(dim=0).values

        return vmap(jacrev(falling))(x), vmap(grad(chosen))(x)


def test_derivatives_of_choices_hold_for_any_number_of_rows(tmp_path: Path) -> None:
    axes = {"x": "batchx6"}
    export(Sorted(), tmp_path / "b", inputs={"x": torch.randn(32, 6)}, axes=axes, whole=True)
    session = Session.load(tmp_path / "b")
    for rows in (1, 4):
        x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))
        found = session.step({"x": x.numpy()})
        for got, want in zip(found.values(), Sorted()(x.double()), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-4)


KEYS = (
    slice(1, None), slice(None, -1), slice(0, 9), slice(3, 1), slice(0, 3, 2), 1, ..., None,
    (0, slice(1, 3)), (..., slice(1)), (slice(1, 2), ...), (None, slice(2), None, 1),
    (slice(1, 3), torch.tensor([0, 2])), torch.tensor([1]),
)  # fmt: skip


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (torch.sort, {"dim": 1, "descending": True, "stable": True}),
        (torch.topk, {"k": 2, "dim": 0}),
        (torch.topk, {"k": 3, "largest": False}),
        (torch.max, {"dim": 1}),
        (torch.min, {"dim": 0, "keepdim": True}),
        (torch.gather, {"dim": 1, "index": torch.tensor([[2, 0], [1, 1]])}),
        (torch.take_along_dim, {"indices": torch.tensor([[2, 0, 1]]), "dim": 1}),
        (torch.take_along_dim, {"indices": torch.tensor([5, 0])}),
        (torch.narrow, {"dim": 1, "start": 1, "length": 2}),
        (torch.narrow, {"dim": -2, "start": -2, "length": 1}),
        (torch.split, {"split_size_or_sections": 2}),
        (torch.split, {"split_size_or_sections": [1, 3], "dim": 1}),
        (torch.chunk, {"chunks": 2, "dim": -1}),
        *((Tensor.__getitem__, {"other": key}) for key in KEYS),
        (torch.max, {}),
        (torch.min, {"other": torch.tensor(0.1)}),
    ],
)
def test_what_is_written_out_is_what_pytorch_gives(
    function: object, arguments: dict[str, object]
) -> None:
    x = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))[:, :3]
    arguments = dict(arguments)
    args = [arguments.pop("other")] if "other" in arguments else []
    got, want = (f(x[0], *args, **arguments) for f in (CHOICES[function], function))  # type: ignore[operator]
    torch.testing.assert_close(tuple(got) if isinstance(want, tuple) else got,
                               tuple(want) if isinstance(want, tuple) else want)  # fmt: skip


def test_a_batch_is_known_within_derivatives() -> None:
    known = []

    def note(x: Tensor) -> Tensor:
        known.append(is_batched(x))
        return x.sum()

    vmap(grad(note))(torch.ones(2, 3))
    grad(note)(torch.ones(2, 3))
    assert known == [True, False]
