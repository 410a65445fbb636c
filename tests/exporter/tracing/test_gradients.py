"""Gradients within a forward pass are exported, for every size of the free axes; so are loops."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.autograd import forward_ad
from torch.nn import functional as F

from intaglio.errors import TraceError
from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.trace import trace
from intaglio.runtime.session import Session

Taken = Callable[[nn.Module, Tensor], Tensor]


class Taught(nn.Module):
    """`take` of a scoring network and points, in a part of its own."""

    def __init__(self, take: Taken, *layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = nn.Sequential(*(layers or (nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1))))
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        return self.take(self.score, x)


def of_function(score: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = torch.func.grad(lambda p: score(p).sum())(x)
    return found


def of_marked(score: nn.Module, x: Tensor) -> Tensor:
    """Without a word on where gradients are recorded."""
    x.requires_grad_()
    return torch.autograd.grad(score(x).sum(), x)[0]


def of_itself(score: nn.Module, x: Tensor) -> Tensor:
    """The input is marked, and what is returned depends on it still."""
    with torch.enable_grad():
        y: Tensor = score(x.requires_grad_())
        return y + torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def of_dual_numbers(score: nn.Module, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))  # type: ignore[no-untyped-call]
        found: Tensor = forward_ad.unpack_dual(score(dual)).tangent  # type: ignore[no-untyped-call]
        return found


def of_linear_map(score: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = torch.func.linearize(score, x)[1](x)
    return found


def of_backward(score: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        point = x.clone().requires_grad_()
        score(point).sum().backward()
        assert point.grad is not None
        return point.grad


def jacobian(score: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = torch.func.vmap(torch.func.jacrev(score))(x)
    return found


def along(score: nn.Module, x: Tensor) -> Tensor:
    """What a direction does to the value and to what is beside it, where PyTorch goes forwards."""
    found: Any = torch.func.jvp(lambda p: (score(p), p.square()), (x,), (x.cos(),), has_aux=True)
    y, changed, beside = found
    result: Tensor = y * changed + beside.mean()
    return result


def twice(score: nn.Module, x: Tensor) -> Tensor:
    """Forwards over backwards; bases of several arguments have ones beside the diagonal."""
    bent = torch.func.hessian(lambda p, q: score(p * q.cos()).sum(), argnums=(0, 1))
    ((_, found), (_, last)) = torch.func.vmap(bent)(x, x + 1)
    result: Tensor = found + 2 * last
    return result


def volume(score: nn.Module, x: Tensor) -> Tensor:
    """Logarithms of how much space a map stretches, as flows have them."""
    slopes = torch.func.vmap(torch.func.jacrev(score))(x)
    found: Tensor = torch.linalg.slogdet(torch.eye(x.shape[1]) + 0.1 * slopes)[1]
    return found


def solved(score: nn.Module, x: Tensor) -> Tensor:
    """A step of Newton's method for each row, and what is joined and stacked there."""

    def step(point: Tensor) -> Tensor:
        slope = torch.func.jacfwd(score)(point) + 3 * torch.eye(4)
        new = point - torch.linalg.solve(slope, score(point))
        return torch.cat((new, torch.stack((new[:2], point[2:]), 1).flatten()))

    found: Tensor = torch.func.vmap(step)(x)
    return found


def adapted(score: nn.Module, x: Tensor) -> Tensor:
    """A step down a loss of the weights that are trained, as meta-learning takes it."""
    with torch.enable_grad():
        trained = {n: p for n, p in score.named_parameters() if p.requires_grad}
        loss = (score(x) - x[:, :1]).square().mean()
        slopes = torch.autograd.grad(loss, list(trained.values()))
    new = {n: p - 0.1 * d for (n, p), d in zip(trained.items(), slopes, strict=True)}
    found: Tensor = torch.func.functional_call(score, new, x)
    return found


def multiplied(score: nn.Module, x: Tensor) -> Tensor:
    """A product of a few, one of them zero, whose slope is that of the others."""
    found: Tensor = torch.func.grad(lambda p: (score(p) * p.prod(1, keepdim=True)).sum())(
        x * (x > x.amin(1, keepdim=True))
    )
    return found


def half_frozen() -> nn.Module:
    module = Taught(adapted)
    module.score[0].requires_grad_(requires_grad=False)
    return module


def seen(score: Any, x: Tensor) -> Tensor:
    """What a picture's features count by their gradients, whose mean asks for more than one."""
    features = score[:2](x)
    slopes = torch.func.grad(lambda f: score[2:](f).amax(-1).sum())(features)
    heat: Tensor = (slopes.mean((2, 3), keepdim=True) * features).sum(1)
    return heat / (heat.amax((1, 2), keepdim=True) + 1)


def pulled(score: nn.Module, x: Tensor) -> Tensor:
    """Forces between all pairs of points, whose distance to themselves has no slope."""

    def energy(points: Tensor) -> Tensor:
        count = len(points)
        far = torch.cdist(points, points)[..., None].expand(-1, count, 8)
        found: Tensor = score(far).sum()
        return found

    found: Tensor = torch.func.grad(energy)(x)
    return -found


def of_each(score: nn.Module, x: Tensor) -> Tensor:
    """Gradients of weights for each example by itself, one of which is left out of the loss."""
    weights: dict[str, Tensor] = dict(score.named_parameters())
    kinds = torch.where(x[:, 0] > 0, 2, torch.where(x[:, 1] > 0, 1, -100))

    def loss(weights: dict[str, Tensor], one: Tensor, kind: Tensor) -> Tensor:
        made: Tensor = torch.func.functional_call(score, weights, (one[None],))
        return F.cross_entropy(made, kind[None], reduction="sum")

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, x, kinds)
    return torch.cat([each.flatten(1) for each in found.values()], 1)


CASES: dict[str, tuple[nn.Module, Tensor, str]] = {
    "autograd": (Taught(of_itself), torch.randn(2, 8), "x:batchx8"),
    "backward": (Taught(of_backward), torch.randn(2, 8), "x:batchx8"),
    "jacobian": (
        Taught(jacobian, nn.Linear(8, 3), nn.SiLU(), nn.LayerNorm(3)),
        torch.randn(2, 8),
        "x:batchx8",
    ),
    "convolutions": (
        Taught(
            of_function,
            nn.Conv1d(4, 8, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv1d(8, 8, 3, groups=2, dilation=2),
            nn.AvgPool1d(3, 2, 1),
            nn.ConvTranspose1d(8, 8, 4, stride=2, padding=1, output_padding=1, groups=4),
            nn.Tanh(),
            nn.AdaptiveAvgPool1d(1),
        ),
        torch.randn(2, 4, 40),
        "x:batchx4x40",
    ),
    "forwards": (
        Taught(along, nn.Conv1d(4, 8, 3), nn.SiLU(), nn.MaxPool1d(2)),
        torch.randn(2, 4, 12),
        "x:batchx4x12",
    ),
    "twice": (Taught(twice, nn.Linear(8, 3), nn.Tanh()), torch.randn(2, 8), "x:batchx8"),
    "volume": (Taught(volume, nn.Linear(4, 4), nn.Tanh()), torch.randn(2, 4), "x:batchx4"),
    "solved": (Taught(solved, nn.Linear(4, 4), nn.Tanh()), torch.randn(2, 4), "x:batchx4"),
    "pulled": (Taught(pulled), torch.randn(5, 3), "x:pointsx3"),
    "of each": (Taught(of_each, nn.Linear(4, 3)), torch.randn(6, 4), "x:batchx4"),
    "multiplied": (Taught(multiplied), torch.randn(5, 8), "x:batchx8"),
    "of weights": (half_frozen(), torch.randn(3, 8), "x:pointsx8"),
    "of features": (
        Taught(
            seen,
            nn.Conv2d(1, 4, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        torch.randn(2, 1, 6, 8),
        "x:batchx1xheightxwidth",
    ),
    "of each token": (Taught(of_function), torch.randn(2, 6, 8), "x:batchxtimex8"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_is_exported_and_holds_for_other_sizes(case: str, tmp_path: Path) -> None:
    module, x, axes = CASES[case]

    export(module, tmp_path / "bundle", inputs={"x": x}, axes=axes)

    x = x.detach()
    other = torch.cat((x, x[:1] + 1))
    (made,) = Session.load(tmp_path / "bundle").step({"x": other.numpy()}).values()
    wanted = module(other.clone()).detach()
    torch.testing.assert_close(torch.from_numpy(made), wanted, atol=1e-5, rtol=1e-5)


def test_gradients_where_nothing_is_recorded_are_refused_with_the_line_to_write() -> None:
    """Sources run under torch.no_grad(): what is differentiated opens gradients itself."""
    source = load_source(Taught(of_marked), inputs={"x": torch.randn(2, 8)}, axes="x:batchx8")
    with pytest.raises(TraceError, match=r"Open `with torch\.enable_grad"):
        trace(source)


@pytest.mark.parametrize("take", [of_dual_numbers, of_linear_map])
def test_dual_numbers_are_refused_with_the_line_to_write(take: Taken) -> None:
    source = load_source(Taught(take), inputs={"x": torch.randn(2, 8)}, axes="x:batchx8")
    with pytest.raises(TraceError, match=r"Write `y, t = torch\.func\.jvp\(f, \(x,\), \(v,\)\)`"):
        trace(source)


def test_a_loop_until_a_value_is_refused_with_its_line_and_the_way_out() -> None:
    def suppressed(score: nn.Module, x: Tensor) -> Tensor:
        left, kept = score(x).squeeze(-1).argsort(descending=True), []
        while len(left):
            kept.append(left[0])
            left = left[1:][(x[left[1:]] - x[left[0]]).norm(dim=-1) > 1]
        return x[torch.stack(kept)]

    source = load_source(Taught(suppressed), inputs={"x": torch.randn(4, 8)}, axes="x:4x8")
    with pytest.raises(
        TraceError,
        match=r"test_gradients\.py:\d+\), `while len\(left\):`.*values of tensors.*"
        r"while_loop, and one that drops entries, as suppression of boxes, as a loop over a fixed",
    ):
        trace(source)


def test_weights_keep_their_names() -> None:
    module, x, axes = CASES["autograd"]

    graph = trace(load_source(module, inputs={"x": x}, axes=axes)).model.graph

    names = {"score.0.weight", "score.0.bias", "score.2.weight"}
    assert names <= set(graph.initializers)


def test_a_branch_on_a_size_is_refused_with_its_condition() -> None:
    def branch(score: nn.Module, x: Tensor) -> Tensor:
        return of_function(score, x if x.shape[0] > 3 else 2 * x)

    source = load_source(Taught(branch), inputs={"x": torch.randn(2, 8)}, axes="x:batchx8")
    with pytest.raises(TraceError, match="on a condition of its sizes, batch <= 3"):
        trace(source)


def test_a_loop_until_it_holds_is_exported(tmp_path: Path) -> None:
    """Nothing of ours may watch the modules in the body, which PyTorch compiles by itself."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            def unfinished(_z: Tensor, change: Tensor) -> Tensor:
                return change > 1e-6

            def better(z: Tensor, _change: Tensor) -> tuple[Tensor, Tensor]:
                new = torch.tanh(0.2 * self.layer(z) + x)
                return new, (new - z).abs().max()

            start = (torch.zeros_like(x), torch.ones(()))
            found: Tensor = while_loop(unfinished, better, start)[0]  # type: ignore[no-untyped-call]
            return found

    module = Fixed()
    export(module, tmp_path / "bundle", inputs={"x": torch.randn(2, 8)}, axes="x:batchx8")

    x = torch.randn(5, 8)
    (made,) = Session.load(tmp_path / "bundle").step({"x": x.numpy()}).values()
    wanted = module(x).detach()
    torch.testing.assert_close(torch.from_numpy(made), wanted, atol=1e-5, rtol=1e-5)
