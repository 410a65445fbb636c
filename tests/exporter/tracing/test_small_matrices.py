"""Small matrices in plain operators are what PyTorch's own functions give."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from intaglio.exporter.tracing.small_matrices import INSTEAD
from intaglio.exporter.tracing.spellings import Spellings

linalg = torch.linalg


def matrices(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Any, positive definite ones, and what stands on the right; rows want another order."""
    random = torch.Generator().manual_seed(size)
    a = torch.randn(3, 4, size, size, generator=random, dtype=torch.float64)
    a[..., 0, 0] = 0.0 if size > 1 else 2.0
    b = torch.randn(3, 4, size, 2, generator=random, dtype=torch.float64)
    return a, a @ a.mT + torch.eye(size), b


CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "solve": lambda a, _, b: linalg.solve(a, b),
    "a vector": lambda a, _, b: linalg.solve(a, b[..., 0]),
    "one vector": lambda a, _, b: linalg.solve(a[0, 0], b[0, 0, :, 0]),
    "one matrix": lambda a, _, b: linalg.solve(a[0, 0], b),
    "inverse": lambda a, _p, _b: (linalg.inv(a), a.inverse()),
    "determinant": lambda a, _p, _b: (linalg.det(a), a.det()),
    "its logarithm": lambda a, p, _: (*linalg.slogdet(a), p.logdet()),
    "Cholesky": lambda _, p, _b: (linalg.cholesky(p), linalg.cholesky(p, upper=True)),
    "solved by factors": lambda _, p, b: b.cholesky_solve(linalg.cholesky(p)),
    "by upper factors": lambda _, p, b: b.cholesky_solve(
        linalg.cholesky(p, upper=True), upper=True
    ),
    "triangles": lambda _, p, b: (
        linalg.solve_triangular(p.tril(), b, upper=False),
        linalg.solve_triangular(p.triu(), b, upper=True),
        linalg.solve_triangular(p.triu(), b.mT, upper=True, left=False),
        linalg.solve_triangular(p.tril(), b.mT, upper=False, left=False, unitriangular=True),
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_small_matrices_in_other_words(call: Callable[..., Any]) -> None:
    for size in (1, 2, 5):
        given = matrices(size)
        wanted = call(*given)
        with Spellings(), LinearAlgebra() as seen:
            found = call(*given)
        torch.testing.assert_close(found, wanted)
        assert not seen.called


class LinearAlgebra(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which operators run that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.called: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        if any(word in str(func) for word in ("linalg", "cholesky", "triangular", "det")):
            self.called.append(str(func))
        return func(*args, **(kwargs or {}))


def test_what_is_told_to_write_is_what_is_refused() -> None:
    a = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    words: dict[str, Any] = {"torch": torch, "a": a}
    for line in INSTEAD["linalg_qr"].split("`")[1::2]:
        exec(line, words)
    signs = linalg.qr(a)[1].diagonal(dim1=-2, dim2=-1).sign()
    torch.testing.assert_close(words["q"], linalg.qr(a)[0] * signs[..., None, :])
    torch.testing.assert_close(words["r"], linalg.qr(a)[1] * signs[..., None])
    (line,) = INSTEAD["linalg_pinv"].split("`")[1::2]
    torch.testing.assert_close(eval(line, words), linalg.pinv(a))
    words |= {"b": a[..., :2].cos(), "columns": 4}
    line, _ = INSTEAD["linalg_lstsq"].split("`")[1::2]
    torch.testing.assert_close(eval(line, words), linalg.lstsq(a, words["b"]).solution)


def test_large_ones_run_as_they_are() -> None:
    a = torch.eye(17) * 2
    with Spellings(), LinearAlgebra() as seen:
        a.inverse()
    assert seen.called
