"""What PyTorch computes before each call from weights alone is a parameter of its own."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.reparametrized import settle


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


def symmetric(layer: nn.Linear) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Symmetric())


def pruned(layer: nn.Linear) -> nn.Module:
    made: nn.Module = prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]
    return made


def older(make: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Linear], nn.Module]:
    def made(layer: nn.Linear) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch would have the newer form
            return make(layer)

    return made


FORMS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "of one's own": symmetric,
    "older weight norm": older(nn.utils.weight_norm),
    "older spectral norm": older(nn.utils.spectral_norm),
    "pruned": pruned,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_weight_is_a_parameter_under_its_own_name(form: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(FORMS[form](nn.Linear(4, 4))).eval()
    x = torch.randn(3, 4)
    wanted = net(x)
    source = load_source(net, inputs={"input": torch.randn(2, 7, 4)})

    assert dict(source.module.named_parameters()).keys() == {"0.weight", "0.bias"}
    torch.testing.assert_close(source.module(x), wanted)
    assert source.notes == ("Computed once, from what parametrizes them: 0.weight.",)
    assert "0.weight" not in dict(net.named_parameters())  # the caller's stays as it is
    torch.testing.assert_close(net(x), wanted)


def test_a_parametrization_that_fixes_its_type_runs_as_it_is() -> None:
    class Table(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight @ torch.eye(4)  # not in float64

    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Table())
    wanted = layer.weight.clone()
    settle(layer)

    assert torch.equal(layer.weight, wanted)


def test_a_module_without_any_is_left_alone() -> None:
    assert settle(nn.Linear(2, 2)) == ()


def test_a_module_in_memory_stays_as_it_was() -> None:
    """Its class holds the weights as properties, which a copy shares."""
    module = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)))
    inputs = {"input": torch.randn(2, 3, 4)}
    before = module(**inputs)
    load_source(module, inputs=inputs)
    assert torch.equal(module(**inputs), before)
