"""A module inside `Widened` computes what its copy in float64 computes."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.exporter.proving.widened import Widened


class Mixed(nn.Module):
    """Takes weights in every way: by modules, functions, methods, operators and their dtype."""

    table: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.tied = nn.Linear(8, 11, bias=False)
        self.tied.weight = self.embed.weight
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv1d(8, 8, 3, padding=2)
        self.scale = nn.Parameter(torch.rand(8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.register_buffer("table", torch.rand(20, 8))
        self.register_buffer("counts", torch.arange(3))

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embed(ids) + self.table[: ids.shape[1]]
        x = x.to(self.scale.dtype) * self.scale + self.scale.flip(0)
        x = self.norm(x) @ self.layer.linear1.weight.T @ self.layer.linear1.weight
        x = self.layer(x + self.conv(x.mT)[..., : x.shape[1]].mT)
        x = torch.cat([x, self.scale.expand_as(x)], -1).chunk(2, -1)[0]
        return F.linear(x, self.tied.weight) + self.counts.sum()


@pytest.fixture(scope="module")
def mixed() -> Mixed:
    torch.manual_seed(0)
    return Mixed().eval()


def test_the_result_is_that_of_a_copy_in_float64(mixed: Mixed) -> None:
    ids = torch.randint(11, (2, 5))
    with torch.no_grad(), Widened(mixed):
        found = mixed(ids)

    assert found.dtype == torch.float64
    with torch.no_grad():
        torch.testing.assert_close(found, copy.deepcopy(mixed).double()(ids), rtol=0, atol=1e-13)
        assert mixed(ids).dtype == torch.float32


def test_attention_takes_masks_that_the_module_makes_in_float32() -> None:
    """Fused kernels read such a mask beside float64 queries as it is not, from 16 tokens on."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            x = x * self.scale
            mask = torch.full((x.shape[2], x.shape[2]), float("-inf")).triu(1)
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    x, module = torch.randn(2, 2, 40, 8, dtype=torch.float64), Masked()
    with torch.no_grad(), Widened(module):
        found = module(x)
    scores = (x @ x.mT / 8**0.5).masked_fill(torch.ones(40, 40).triu(1).bool(), float("-inf"))
    torch.testing.assert_close(found, scores.softmax(-1) @ x, rtol=0, atol=1e-12)


def test_so_does_attention_within_a_layer_of_pytorch() -> None:
    """The layer is one function to a mode, which does not see what the function calls."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.randn(2, 40, 16, dtype=torch.float64)

    def run(layer: nn.Module, mask: Tensor) -> Tensor:
        found: Tensor = layer(x, x, x, attn_mask=mask, need_weights=False)[0]
        return found

    mask = torch.full((40, 40), float("-inf")).triu(1)
    with torch.no_grad():
        with Widened(layer):
            found = run(layer, mask)
        wanted = run(copy.deepcopy(layer).double(), mask.double())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_questions_about_a_weight_are_answered_as_of_float64(mixed: Mixed) -> None:
    with Widened(mixed):
        assert mixed.scale.dtype == torch.float64
        assert mixed.counts.dtype == torch.int64
        assert (mixed.scale.shape, len(mixed.scale), mixed.scale.size(0)) == ((8,), 8, 8)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_layers_of_a_copy_are_widened(kind: type[nn.GRU | nn.LSTM]) -> None:
    """Their list of weights holds other tensors than their parameters, of the same memory."""
    layer = kind(4, 3, batch_first=True).eval()
    layer._flat_weights = [weight.detach() for weight in layer.parameters()]
    x = torch.rand(2, 5, 4, dtype=torch.float64)
    with torch.no_grad(), Widened(layer):
        found = layer(x)[0]
    wanted = copy.deepcopy(layer).double()

    assert found.dtype == torch.float64
    with torch.no_grad():
        torch.testing.assert_close(found, wanted(x)[0], rtol=1e-12, atol=1e-14)


def test_what_a_module_writes_to_a_buffer_is_read_from_there() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            kept = self.get_buffer("kept")
            kept[: len(x)] = x
            return kept[: len(x)] + x

    module, x = Keeping(), torch.randn(3).double()
    for _ in range(2):
        with Widened(module):
            torch.testing.assert_close(module(x), 2 * x)
    assert not module.get_buffer("kept").any()


def test_limits_of_dtypes_are_those_that_the_module_runs_with() -> None:
    """They are added so as not to divide by zero, and tell where entries are small."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.scale = nn.RMSNorm(8), nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            x = x * self.scale
            by_hand = x / (x.square().sum(-1, keepdim=True) + torch.finfo(x.dtype).eps)
            normed: Tensor = self.norm(x)
            return normed + F.rms_norm(x, [8]) + 1e-4 * by_hand

    module, x = Small(), 1e-4 * torch.randn(3, 8)
    with torch.no_grad():
        with Widened(module):
            found = module(x.double())
        torch.testing.assert_close(found, module(x).double(), rtol=1e-5, atol=0)
    assert torch.finfo(torch.float64).bits == 64
