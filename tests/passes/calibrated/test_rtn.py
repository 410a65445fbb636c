"""Rounding to the nearest code, and what all low-bit passes share: which layers, how they are put.

The graphs are those of a module with everything that a projection can be: biases, a tied head, a
weight that is used twice, one that is no nn.Linear.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import PassError
from intaglio.passes import evaluate, pipeline
from intaglio.passes.base import Context
from intaglio.passes.calibrated._affine import grid, quantize
from intaglio.passes.calibrated.rtn import Rtn
from intaglio.passes.low_bit import low_bit_nodes, parameter_of, weight_of

Quantize = Callable[[Rtn], tuple[ir.Model, Mapping[str, Any]]]


class Net(nn.Module):
    """Two layers with biases, one layer used twice, a bare matrix [K, N], a tied head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(31, 20)
        self.layers = nn.ModuleList(nn.Linear(20, 20) for _ in range(2))
        self.twice = nn.Linear(20, 20, bias=False)
        self.mix = nn.Parameter(torch.randn(20, 20) / 5)
        self.lm_head = nn.Linear(20, 31, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits."""
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x).tanh()
        x = self.twice(self.twice(x).tanh()) @ self.mix
        logits: Tensor = self.lm_head(x)
        return logits


@pytest.fixture(scope="module")
def graph(traced: Callable[[nn.Module], tuple[ir.Model, Context]]) -> ir.Model:
    return traced(Net())[0]


@pytest.fixture(scope="module")
def quantized(graph: ir.Model) -> Quantize:
    """The graph of `Net` after a pass, and what the pass reports."""

    def run(step: Rtn) -> tuple[ir.Model, Mapping[str, Any]]:
        model = graph.clone()
        return model, step.run(model, Context()).details

    return run


def paths(details: Mapping[str, Any]) -> list[str]:
    return [layer["path"] for layer in details["layers"]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [-1, 7, 10, 32])
def test_no_weight_moves_by_more_than_half_a_step(bits: int, group: int) -> None:
    """Ranges hold zero and both ends; the last group may be shorter; -1 and K are one group."""
    torch.manual_seed(bits)
    weight = torch.randn(5, 20, dtype=torch.float64)
    weight[2] = 0.0
    weight[3] = weight[3].abs() + 1
    found = quantize(weight, *grid(weight, bits, group), bits, group)

    moved = (found.dequantize() - weight).abs()
    assert (moved <= found.by_input(found.scale) / 2 + 1e-12).all()
    assert found.scale.shape[1] == {-1: 1, 7: 3, 10: 2, 32: 1}[group]
    assert not moved[2].any()


def test_a_weight_on_its_grid_is_kept() -> None:
    codes = torch.randint(-2, 2, (4, 16), dtype=torch.int8)
    codes[:, :2] = torch.tensor([-2, 1])
    weight = 0.5 * codes.double()
    found = quantize(weight, *grid(weight, 2, -1), 2, -1)

    assert torch.allclose(found.dequantize(), weight, rtol=0, atol=1e-12)


def test_the_graph_computes_what_the_module_does_with_the_dequantized_weights(
    quantized: Quantize,
) -> None:
    """Weights stored by output and by input, with and without bias, groups that do not divide."""
    model, details = quantized(Rtn(bits=3, group=8))
    net = Net()
    tensors = dict(net.named_parameters())
    for node in low_bit_nodes(model):
        name, by_input = parameter_of(node)
        weight = torch.from_numpy(weight_of(node).dequantize())
        tensors[name].data = weight.T if by_input else weight
        assert by_input is (name == "mix")
    ids = torch.randint(31, (2, 5), generator=torch.Generator().manual_seed(1))
    got = evaluate.run(model, {"input_ids": ids.numpy()})["logits"]

    assert paths(details) == ["layers.0", "layers.1", "mix"]
    np.testing.assert_allclose(got, net(ids).detach().numpy(), rtol=0, atol=2e-5)


def test_what_stays_in_float_is_told_with_its_reason(quantized: Quantize) -> None:
    _, details = quantized(Rtn(skip=["mix"]))

    assert paths(details) == ["layers.0", "layers.1"]
    assert details["skipped"] == {
        "twice": "its weight is used 2 times, on inputs of its own each",
        "mix": "among skip",
        "lm_head": "it yields the logits; head=true quantizes it too",
    }


def test_a_tied_head_is_quantized_where_it_is_asked_for_and_the_embedding_stays(
    quantized: Quantize,
) -> None:
    model, details = quantized(Rtn(head=True, layers=["lm_head"]))

    assert paths(details) == ["lm_head"]
    assert {"embed.weight", "lm_head.weight.codes"} <= set(model.graph.initializers)


def test_a_tied_table_is_looked_up_in_the_codes_of_its_head(quantized: Quantize) -> None:
    """With embeddings=true no float table is left, and rows are those of the dequantized weight."""
    model, _ = quantized(Rtn(bits=4, head=True, embeddings=True, layers=["lm_head"]))
    net = Net()
    kinds = {node.op_type: weight_of(node).dequantize() for node in low_bit_nodes(model)}
    net.embed.weight.data = torch.from_numpy(kinds["AffineLowBitGather"])
    ids = torch.randint(31, (2, 5), generator=torch.Generator().manual_seed(1))
    got = evaluate.run(model, {"input_ids": ids.numpy()})["logits"]

    assert "embed.weight" not in model.graph.initializers
    assert {parameter_of(node) for node in low_bit_nodes(model)} == {("embed.weight", False)}
    np.testing.assert_allclose(got, net(ids).detach().numpy(), rtol=0, atol=2e-5)


def test_overrides_go_before_the_options_for_all(quantized: Quantize) -> None:
    step = pipeline.parse('rtn:bits=4,group=10,overrides={"layers.1"={bits=8}, mix={group=-1}}')
    assert isinstance(step, Rtn)
    _, details = quantized(step)

    assert [(x["bits"], x["group"]) for x in details["layers"]] == [(4, 10), (8, 10), (4, 20)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": ["layer.*"]}, "'layer.\\*' fits none of the projections; they are: layers.0"),
        ({"bits": 5}, "bits = 5 should be one of"),
        ({"group": -2}, "group = -2 should be a positive number, or -1"),
        ({"overrides": {"mix": {"bit": 4}}}, "an override has 'bit'"),
        ({"layers": ["twice"]}, "nothing to quantize .*twice: its weight is used 2 times"),
    ],
)
def test_options_that_cannot_be_are_refused(
    quantized: Quantize, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(PassError, match=said):
        quantized(Rtn(**options))


def test_before_and_after_statefulize_the_weights_are_the_same(graph: ir.Model) -> None:
    weights = []
    for steps in (pipeline.standard(extra=[Rtn()]), [*pipeline.standard(), Rtn()]):
        model = graph.clone()
        pipeline.run(model, steps, Context())
        weights.append({n: v for n, v in model.graph.initializers.items() if "." in n})

    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        other = weights[1][name].const_value
        assert value.const_value is not None
        assert other is not None
        np.testing.assert_array_equal(value.const_value.numpy(), other.numpy())
