"""Programs become plain without a trace, and compute what they did; others are left to PyTorch."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from intaglio.exporter.tracing import translations
from intaglio.exporter.tracing.plain_ops import made_plain
from intaglio.quiet import quiet


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


@functools.cache
def known() -> frozenset[object]:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    table = ONNXRegistry.from_torchlib(opset_version=23)
    return frozenset(each[0].fx_target for each in table.functions.values() if each)


def captured(function: Callable[[Tensor], object]) -> ExportedProgram:
    shapes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    module, example = Called(function), torch.randn(3, 7, 12)
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)


def reshaped(x: Tensor) -> Tensor:
    """Not contiguous, by what is left of a size, and by sizes times and plus others."""
    y = x.mT.reshape(x.shape[0], -1, 4).flatten(0, 1).reshape(-1, 2)
    twice = torch.cat((x.flatten(0, 1), x.flatten(0, 1)[1:]))
    flat: Tensor = nn.Unflatten(1, (3, 4))(twice).flatten()
    return flat + x[:, : x.shape[1] // 2].reshape(-1).sum() + y.sum()


def cast(x: Tensor) -> Tensor:
    return (x > 0).to(torch.int64).type_as(x) + x.to(torch.float64).to(x.dtype) + x.to(x.dtype)


def parted(x: Tensor) -> tuple[Tensor, ...]:
    shuffled = x.view(x.shape[0], -1, 3, 4).mT.contiguous().view(*x.shape)
    return x.chunk(3, -1) + shuffled.chunk(5, dim=2)


def several(x: Tensor) -> Tensor:
    y = (1 - x[:, :1].expand_as(x)).movedim(1, -1).square() @ torch.rsub(x, 2, alpha=3)
    return torch.where((y > 0)[..., :1] & (y > 1) | (y < -1), y.mT.swapaxes(1, 2), 0.0)


def shifted(x: Tensor) -> tuple[Tensor, ...]:
    turned = x.moveaxis((0, -1), (1, 0)), x.movedim((1, 2, 0), (0, 1, 2)), x.moveaxis(2, 0)
    return *turned, x[0].T, torch.outer(x[0, :, 0], x[0, 0]), (x > 0) | True


def looped(x: Tensor) -> Tensor:
    def step(state: Tensor, entry: Tensor) -> tuple[Tensor, Tensor]:
        state = (1 - entry) * state + entry.reshape(-1, 12)
        return state, state.to(torch.float64)

    _, found = torch._higher_order_ops.scan(step, x[:, 0].clone(), x.movedim(1, 0))
    return torch.as_tensor(found).movedim(0, 1)


KERNEL = torch.randn(5, 12, 3)


def convolved(x: Tensor) -> tuple[Tensor, Tensor]:
    same = F.conv1d(x.mT, KERNEL, padding="same", dilation=2)
    return same, F.conv1d(x.mT, KERNEL, padding="valid", stride=2).narrow(1, 1, 3)


def normed(x: Tensor) -> Tensor:
    mean, spread = torch.arange(12.0), torch.arange(1.0, 13.0)
    y = F.batch_norm(x.mT, mean, spread, spread, mean, eps=0.1)
    return F.dropout(y, 0.5, training=False) * torch.tensor(2.0)


def placed(x: Tensor) -> Tensor:
    """Written in place, by views whose sizes are free."""
    y = x.reshape(x.shape[0], -1) * 2
    y.view(x.shape)[:, 1:, :3] = x.mean(1, keepdim=True)[..., :3]
    y[:, 0] = 1
    y.mT.div_(y.amax() + 1)
    return y


def same(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.reshape(x.shape), x.contiguous()


@pytest.mark.parametrize(
    "function", [reshaped, cast, parted, several, shifted, looped, convolved, normed, placed, same]
)
def test_what_is_rewritten_computes_the_same(function: Callable[[Tensor], object]) -> None:
    program = captured(function)
    assert made_plain(program, known())
    program.graph.lint()
    left = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert not left & {torch.ops.aten.reshape.default, torch.ops.aten.to.dtype}
    for shape in ((3, 7, 12), (2, 9, 12), (4, 5, 12)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), function(x))


def written(x: Tensor) -> Tensor:
    y = x.reshape(x.shape[0], -1) * 2
    y.chunk(2, 1)[0].add_(1)
    return y


def uneven(x: Tensor) -> Tensor:
    return F.conv1d(x.mT, KERNEL[..., :2], padding="same")


def dropped(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, training=True) * 0


@pytest.mark.filterwarnings("ignore:Using padding:UserWarning")
@pytest.mark.parametrize("function", [written, uneven, dropped])
def test_what_needs_more_is_left_to_pytorch(function: Callable[[Tensor], object]) -> None:
    program = captured(function)
    assert not made_plain(program, known())
    x = torch.randn(2, 9, 12)
    torch.testing.assert_close(program.module()(x), function(x))


@pytest.mark.filterwarnings("ignore:Using padding:UserWarning")
def test_a_plain_program_is_not_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[ExportedProgram] = []
    own: Any = ExportedProgram.run_decompositions

    def counting(program: ExportedProgram, *args: Any, **options: Any) -> Any:
        traced.append(program)
        return own(program, *args, **options)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", counting)
    for function, times in ((several, 0), (uneven, 1)):
        with quiet(), translations.swift_translations():
            made = torch.onnx.export(
                captured(function), dynamo=True, opset_version=23, verbose=False
            )
        assert made is not None
        assert len(traced) == times
