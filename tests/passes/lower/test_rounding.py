"""What rounding to 8 bits makes of a product is measured where the product stands, on real rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from torch import nn

from intaglio.models import find
from intaglio.models.llama import Config
from intaglio.passes import evaluate, pipeline
from intaglio.passes.base import Context
from intaglio.passes.calibration import Batch, Calibration
from intaglio.passes.low_bit import low_bit_nodes, weight_of
from intaglio.passes.lower._mat_mul import LowBitMatMul
from intaglio.passes.lower._rounding import rounded, rounding_errors
from intaglio.passes.lower.ort_low_bit import OrtLowBit

TINY = Config(
    vocab_size=31,
    hidden_size=48,
    intermediate_size=80,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
)
ROWS, STEPS = 2, 12

Graph = tuple[ir.Model, Context]


@pytest.fixture(scope="module")
def training(traced: Callable[[nn.Module], Graph]) -> Graph:
    """A Llama type of one layer, before any pass."""
    return traced(find("llama").build(TINY))


def quantized(graph: Graph, group: int, lengths: list[int], *, step: bool = False) -> Graph:
    """The graph with 2 bits, as it came or made to step, and three batches of calibration data."""
    random = np.random.default_rng(0)
    batches = [
        Batch(
            inputs={"input_ids": random.integers(0, 31, (ROWS, STEPS))},
            rows=ROWS,
            steps=STEPS,
            lengths=np.array(lengths),
        )
        for _ in range(3)
    ]
    model = graph[0].clone()
    context = Context(calibration=Calibration(batches=batches, sha256=""))
    rtn = pipeline.parse(f"rtn:bits=2,group={group}")
    pipeline.run(model, pipeline.standard(extra=[rtn]) if step else [rtn], context)
    return model, context


def products(model: ir.Model) -> list[LowBitMatMul]:
    return [LowBitMatMul(node, weight_of(node)) for node in low_bit_nodes(model)]


@pytest.mark.parametrize("group", [32, 16, -1])
def test_it_is_the_error_of_the_engine(training: Graph, group: int) -> None:
    """Of each product alone, groups that fit, are padded, and end short; held-out rows alone."""
    model, context = quantized(training, group, [STEPS, STEPS])
    data = context.calibration
    assert data is not None
    found = rounding_errors(model, context, products(model))
    assert len(found) == 7
    for product, error in found.items():
        x, y = product.input, product.node.outputs[0]
        given = evaluate.run(evaluate.part(model, [x]), data.batches[2].inputs)
        layer = evaluate.part(model, [y], given=[x])
        wanted = evaluate.run(layer, given)[str(y.name)]
        OrtLowBit(accuracy="fast").run(layer, Context())
        got = evaluate.run(layer, given, optimize=True)[str(y.name)]
        assert np.abs(got - wanted).max() / np.abs(wanted).max() == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("lengths", [[STEPS, STEPS], [STEPS, 3]])
def test_a_graph_that_steps_says_the_same(training: Graph, lengths: list[int]) -> None:
    """Its caches are empty at first, and padding at the end of a row is not counted."""
    measured = []
    for step in (False, True):
        model, context = quantized(training, 32, lengths, step=step)
        found = rounding_errors(model, context, products(model))
        measured.append(sorted(found.values()))
    np.testing.assert_allclose(measured[0], measured[1], rtol=1e-3)


def test_padding_is_not_counted(training: Graph) -> None:
    """Shorter rows make other errors."""
    errors = []
    for length in (STEPS, 1):
        model, context = quantized(training, 32, [length, length])
        errors.append(list(rounding_errors(model, context, products(model)).values()))
    assert errors[0] != errors[1]


def test_without_data_nothing_is_measured(training: Graph) -> None:
    model, _ = quantized(training, 32, [STEPS, STEPS])
    assert rounding_errors(model, Context(), products(model)) == {}


def test_rows_of_zeros_stay_zero(training: Graph) -> None:
    model, _ = quantized(training, 16, [STEPS, STEPS])
    x: Any = np.zeros((3, products(model)[0].weight.K), np.float32)
    assert not rounded(x, products(model)[0]).any()
