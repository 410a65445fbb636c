"""Matrices as products of thinner ones: optimal by weights, optimal by outputs, verified."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import intaglio
from intaglio.errors import PassError
from intaglio.exporter.sources.calibration_data import read_calibration
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import trace
from intaglio.jobs import Where
from intaglio.models.llama import Config, build
from intaglio.passes import pipeline
from intaglio.passes.base import Context, PassResult
from intaglio.passes.calibrated.low_rank import LowRank, by_outputs, by_weights

CALL: dict[str, Any] = {"inputs": {"input_ids": torch.arange(8)[None]}}


def test_by_outputs_is_the_best_product_for_the_inputs() -> None:
    """Against the singular values of the outputs; the one by weights alone does worse there."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 10)) * np.linspace(0.05, 3, 10)
    weight = random.normal(size=(8, 10))
    moment = x.T @ x / 300
    errors = {}
    for name, (a, b) in {
        "outputs": by_outputs(weight, moment, 3),
        "weights": by_weights(weight, 3),
    }.items():
        assert a.shape == (8, 3)
        assert b.shape == (3, 10)
        errors[name] = np.square(x @ (weight - a @ b).T).sum()
    singular = np.linalg.svd(x @ weight.T, compute_uv=False)

    np.testing.assert_allclose(errors["outputs"], np.square(singular[3:]).sum(), rtol=1e-9)
    assert errors["outputs"] < 0.9 * errors["weights"]
    a, b = by_weights(weight, 3)
    singular = np.linalg.svd(weight, compute_uv=False)
    np.testing.assert_allclose(np.square(weight - a @ b).sum(), np.square(singular[3:]).sum())


def model() -> nn.Module:
    torch.manual_seed(0)
    config = Config(hidden_size=32, intermediate_size=40, num_layers=1, vocab_size=64)
    module = build(config)
    for parameter in module.parameters():
        if parameter.ndim == 2:
            parameter.data *= 8
    return module.eval()


def ids() -> dict[str, Any]:
    return {"input_ids": np.random.default_rng(0).integers(0, 64, (24, 16))}


@cache
def graph() -> tuple[Source, ir.Model]:
    source = load_source(model(), **CALL)
    found = trace(source).model
    pipeline.run(found, pipeline.tidy(), Context())
    return source, found


def factored(*, where: Where = Where(), **options: Any) -> PassResult:  # noqa: B008  frozen
    source, found = graph()
    context = Context(calibration=read_calibration(ids(), source), where=where)
    return LowRank(**options).run(found.clone(), context)


@pytest.mark.parametrize("bits", ["", "rtn:bits=8,group=-1"])
def test_a_bundle_of_factors_is_verified_by_their_products(tmp_path: Path, bits: str) -> None:
    """Each with the error of the engine apart from that of the factors, of few bits or not."""
    report = intaglio.export(
        model(),
        tmp_path / "bundle",
        passes=["low-rank:ratio=0.2,layers=['*mlp*']", *([bits] if bits else [])],
        calib=ids(),
        kv="grow",
        **CALL,
    )
    parity = report.parity
    assert parity is not None
    assert parity.passed
    assert parity.against.endswith("dequantized and compressed" if bits else "compressed")
    assert (parity.quantization or {})["logits"] > 1e-3


def test_layers_in_a_row_read_what_is_there(tmp_path: Path) -> None:
    """Two with nothing between, as a model of two factors has them: the second reads the new."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 10, bias=False), nn.Linear(10, 12)).eval()
    report = intaglio.export(
        module,
        tmp_path / "bundle",
        passes=["low-rank:ratio=0.3,by='svd',head=true"],
        inputs={"input": torch.zeros(3, 12)},
        axes={"input": "batchx12"},
    )
    assert report.parity is not None
    assert report.parity.passed


def test_what_is_refused_of_whole_inputs_too_is_not_sent_there(tmp_path: Path) -> None:
    """A ratio that leaves nothing is no matter of steps."""
    with pytest.raises(PassError, match=r"At most 0\.\d+ leaves one\.$"):
        intaglio.export(
            model(), tmp_path / "bundle", passes=["low-rank:ratio=0.99"], calib=ids(), **CALL
        )


def test_data_and_the_layers_before_count() -> None:
    plain, better = (
        factored(ratio=0.4, by=by).details["stages"][1]["perplexity"] for by in ("svd", "data")
    )
    assert better < plain


def test_ranks_are_by_ratio_by_layer_and_no_larger_than_pays() -> None:
    found = factored(ratio=0.5, ranks={"*gate_proj": 3, "*o_proj": 30}).details
    ranks = {layer["path"]: layer["rank"] for layer in found["layers"]}

    assert ranks["layers.0.mlp.gate_proj"] == 3
    assert ranks["layers.0.mlp.up_proj"] == int(0.5 * 32 * 40 / 72)
    assert found["left"]["layers.0.mixer.o_proj"] == "rank 30 is no smaller than the matrix"
    assert "it yields the logits" in found["left"]["lm_head"]


def test_what_leaves_nothing_is_refused() -> None:
    with pytest.raises(PassError, match=r"leaves no rank\. At most"):
        factored(ratio=0.99)
    with pytest.raises(PassError, match="should be above 0 and below 1"):
        factored(ratio=1.0)
    with pytest.raises(PassError, match="nothing to factor"):
        factored(layers=["nowhere"])


def test_data_is_needed_unless_weights_alone_decide() -> None:
    found = graph()[1].clone()
    with pytest.raises(PassError, match="by='svd', which needs none"):
        LowRank().run(found, Context())
    assert LowRank(by="svd").run(found, Context()).changed


def test_layers_are_solved_alike_in_processes() -> None:
    """Those that read one value, one after the other here, or two at a time."""
    here, beside = (factored(where=Where(jobs=jobs)).details for jobs in (1, 2))
    assert here["layers"] == beside["layers"]
    assert here["stages"] == beside["stages"]
