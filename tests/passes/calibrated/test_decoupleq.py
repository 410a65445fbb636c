"""decoupleQ on single layers, and on whole models: resumed, repeated, stepped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from intaglio.errors import PassError
from intaglio.exporter.sources.calibration_data import read_calibration
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import Traced, trace
from intaglio.models import MODELS
from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.calibrated import decoupleq
from intaglio.passes.calibrated._affine import Quantized, errors, grid
from intaglio.passes.calibrated._alternate import alternate, fit_grid
from intaglio.passes.calibrated._columns import damped, factor, round_columns
from intaglio.passes.calibrated.decoupleq import Decoupleq
from intaglio.passes.calibrated.gptq import Gptq
from intaglio.passes.low_bit import low_bit_nodes
from intaglio.state import BATCH, TIME

GROUPS = [-1, 16, 10]
SMALL = {
    "gated-deltanet": {"num_layers": 2, "hidden_size": 32, "intermediate_size": 40},
    "gla": {"num_layers": 2, "hidden_size": 32, "intermediate_size": 40, "key_size": 32},
    "llama": {"num_layers": 2, "hidden_size": 32, "intermediate_size": 40},
}


@pytest.fixture(scope="module")
def layer() -> tuple[Tensor, Tensor]:
    """A weight [12, 40] and damped X^T X of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    x = torch.randn(300, 40, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(12, 40, generator=generator, dtype=torch.float64)
    return weight, damped(x.T @ x / 300, 0.01)


def row_errors(weight: Tensor, found: Quantized, hessian: Tensor) -> Tensor:
    return errors(found.dequantize() - weight, hessian)


@pytest.mark.parametrize("group", GROUPS)
def test_no_row_is_worse_than_with_gptq_and_no_round_raises_an_error(
    layer: tuple[Tensor, Tensor], group: int
) -> None:
    weight, hessian = layer
    inverse = factor(hessian)
    start = round_columns(weight, *grid(weight, 2, group), 2, group, inverse)
    before = row_errors(weight, start.as_stored(), hessian)
    for rounds in range(4):
        found = alternate(weight, hessian, inverse, start, rounds)
        after = row_errors(weight, found, hessian)
        assert (after <= before).all()
        before = after

    assert after.sum() < 0.8 * row_errors(weight, start, hessian).sum()


@pytest.mark.parametrize("group", GROUPS)
def test_grids_are_the_least_squares_solution_for_their_codes(
    layer: tuple[Tensor, Tensor], group: int
) -> None:
    """Against a solver of the whole problem: rows of X as equations, scales and offsets unknown."""
    weight, hessian = layer
    start = round_columns(weight, *grid(weight, 2, group), 2, group, factor(hessian))
    found = fit_grid(weight, start, hessian)
    root = torch.linalg.cholesky(hessian).T
    count = found.scale.shape[1]
    for row in range(len(weight)):
        basis = torch.zeros(40, 2 * count, dtype=torch.float64)
        for k in range(40):
            basis[k, k // found.group] = start.codes[row, k]
            basis[k, count + k // found.group] = 1
        wanted = torch.linalg.lstsq(root @ basis, root @ weight[row, :, None]).solution[:, 0]
        got = torch.cat([found.scale[row], found.offset[row]])
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_what_is_stored_is_single_precision_without_negative_scales() -> None:
    """Codes are mirrored where the scale was negative, and stand for the same weight."""
    generator = torch.Generator().manual_seed(0)
    found = Quantized(
        codes=torch.randint(-4, 4, (6, 16), generator=generator, dtype=torch.int8),
        scale=torch.randn(6, 2, generator=generator, dtype=torch.float64),
        offset=torch.randn(6, 2, generator=generator, dtype=torch.float64),
        bits=3,
        group=8,
    )
    stored = found.as_stored()

    assert (stored.scale >= 0).all()
    assert torch.equal(stored.scale, stored.scale.float().double())
    torch.testing.assert_close(stored.dequantize(), found.dequantize(), rtol=0, atol=2e-6)


Small = tuple[Source, Traced]


def make(name: str) -> Small:
    """A small model with random weights, and its graph."""
    (entry,) = (model for model in MODELS if model.name == name)
    torch.manual_seed(0)
    config = entry.configure({**SMALL[entry.name], "vocab_size": 64})
    module = entry.build(config).eval().requires_grad_(requires_grad=False)
    for parameter in module.parameters():
        if parameter.ndim == 2:
            parameter.mul_(8)  # random weights of the initial size hardly act

    def sample(sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        batch, time = sizes[BATCH], sizes[TIME]
        return entry.inputs(config, batch, time, torch.Generator().manual_seed(seed))

    source = Source(
        path=Path("model.pt"),
        name="model.pt",
        format="test",
        sha256="0" * 64,
        body=module,
        dynamic={"input_ids": {0: BATCH, 1: TIME}},
        sample=sample,
    )
    return source, trace(source)


@pytest.fixture(scope="module")
def small() -> Small:
    return make("gla")


def context_of(small: Small, work: Path | None = None) -> Context:
    source, traced = small
    ids = source.random_inputs(32, 16, 1)["input_ids"].numpy()
    return Context(
        max_context=traced.max_context,
        calibration=read_calibration({"input_ids": ids}, source),
        module=source.module,
        work=work,
    )


@pytest.mark.parametrize("name", SMALL)
def test_it_composes_with_every_system_before_and_after_statefulize(
    name: str, small: Small
) -> None:
    """Projections become low-bit, states stay as they are, both graphs step to the same result."""
    small = small if name == "gla" else make(name)
    step = Decoupleq(group=16, rounds=1, epochs=1)
    graphs: list[tuple[ir.Model, Context]] = []
    for steps in (pipeline.standard(extra=[step]), [*pipeline.standard(), step]):
        model, context = small[1].model.clone(), context_of(small)
        records = pipeline.run(model, steps, context, check=not graphs)
        graphs.append((model, context))
        (details,) = (r.result.details for r in records if r.name == "decoupleq")

    assert [len(list(low_bit_nodes(model))) for model, _ in graphs] == [len(details["layers"])] * 2
    assert [[s.input for s in c.states] for _, c in graphs] == [
        [s.input for s in graphs[0][1].states]
    ] * 2
    codes = [
        {n: v.const_value for n, v in m.graph.initializers.items() if n.endswith(".codes")}
        for m, _ in graphs
    ]
    same = [
        np.mean(codes[0][name].numpy() == codes[1][name].numpy())  # type: ignore[union-attr]
        for name in codes[0]
    ]
    assert np.mean(same) > 0.9  # rounding may tip a code where engines sum in other orders
    assert details["stages"][-1]["perplexity"] > 0
    assert {block["path"] for block in details["blocks"]} == {"layers.0", "layers.1"}
    for block in details["blocks"]:
        assert block["after"] <= block["before"]


def quantize(small: Small, context: Context, step: Decoupleq) -> dict[str, Any]:
    model = small[1].model.clone()
    (record,) = pipeline.run(model, [step], context)
    arrays = {n: v.const_value for n, v in model.graph.initializers.items()}
    return {"arrays": arrays, "details": record.result.details}


def test_the_same_input_gives_the_same_bytes_and_finished_layers_are_not_redone(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the second run takes every layer from the first, and with other data none."""
    step = Decoupleq(group=16, rounds=1, epochs=1)
    first = quantize(small, context_of(small), step)
    quantize(small, context_of(small, tmp_path), step)

    def never(*_: Any) -> Quantized:
        raise AssertionError("a finished layer is quantized again")

    monkeypatch.setattr(decoupleq, "alternate", never)
    quantize(small, context_of(small, tmp_path), Decoupleq(group=16, rounds=1, blocks=False))
    second = quantize(small, context_of(small, tmp_path), step)

    assert first["details"] == second["details"]
    floats = small[1].model.graph.initializers
    moved = {
        name
        for name, tensor in first["arrays"].items()
        if name in floats and tensor.tobytes() != floats[name].const_value.tobytes()  # type: ignore[union-attr]
    }
    assert set(first["details"]["tuned"]) == moved  # verification takes these from the bundle
    assert any("norm" in name for name in moved)
    for name, tensor in first["arrays"].items():
        assert tensor.tobytes() == second["arrays"][name].tobytes()
    other = context_of(small, tmp_path)
    assert other.calibration is not None
    other.calibration = read_calibration(
        {"input_ids": small[0].random_inputs(32, 16, 2)["input_ids"].numpy()}, small[0]
    )
    with pytest.raises(AssertionError, match="again"):
        quantize(small, other, step)


def test_an_override_of_a_later_layer_keeps_the_earlier_ones(small: Small, tmp_path: Path) -> None:
    quantize(small, context_of(small, tmp_path), Decoupleq(rounds=1, blocks=False))
    before = set(tmp_path.iterdir())
    change = {"layers.1.mlp.down_proj": {"bits": 4}}
    quantize(
        small, context_of(small, tmp_path), Decoupleq(rounds=1, blocks=False, overrides=change)
    )

    assert len(set(tmp_path.iterdir()) - before) == 1


def test_without_data_or_a_module_it_says_what_is_missing(small: Small) -> None:
    model = small[1].model.clone()
    for step in (Decoupleq(), Gptq()):
        with pytest.raises(PassError, match=r"needs data to learn from: .*--calib FILE\.npz"):
            step.run(model, Context())
    context = context_of(small)
    context.module = None
    advice = Decoupleq(rounds=0).run(model, context).advice

    assert advice == ["The block stage of decoupleq was left out: the source is no PyTorch module."]
