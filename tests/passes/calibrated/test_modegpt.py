"""MoDeGPT: its three solutions against their definitions, and whole models compressed by it."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from mixers import Attention, Residual
from torch import Tensor, nn
from torch.nn import functional as F
from traced import Traced

import intaglio
from intaglio.errors import PassError
from intaglio.exporter.export import ExportReport
from intaglio.exporter.sources.calibration_data import read_calibration
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing import trace
from intaglio.jobs import Where
from intaglio.models.llama import Config, build
from intaglio.passes import pipeline
from intaglio.passes.base import Context, PassResult
from intaglio.passes.calibrated import _moments
from intaglio.passes.calibrated._shared_channels import best_basis, choose_channels, nystrom
from intaglio.passes.calibrated.modegpt import Modegpt, allocate
from intaglio.passes.calibration import Batch, Calibration

Array = npt.NDArray[Any]
RATIO = 0.25


@pytest.fixture(scope="module")
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_nystrom_is_least_squares_on_the_channels_with_the_largest_leverage(
    random: np.random.Generator,
) -> None:
    """Against the rows of a themselves: leverage by its definition, the matrix by lstsq."""
    a = random.normal(size=(200, 12)) @ random.normal(size=(12, 12))
    down = random.normal(size=(5, 12))
    moment = a.T @ a / len(a)
    kept, new, error = nystrom(moment, down, 7, 1e-2)
    ridge = 1e-2 * np.trace(moment) / 12
    leverage = np.diag(moment @ np.linalg.inv(moment + ridge * np.eye(12)))
    wanted = np.linalg.lstsq(a[:, kept], a @ down.T, rcond=None)[0].T
    wrong = a @ down.T - a[:, kept] @ new.T

    assert set(kept) == set(np.argsort(-leverage)[:7])
    np.testing.assert_allclose(new, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(error, np.square(wrong).sum() / np.square(a @ down.T).sum(), 1e-4)


def test_channels_that_say_the_same_cost_nothing(random: np.random.Generator) -> None:
    a = random.normal(size=(300, 4))
    a = np.concatenate([a, a @ random.normal(size=(4, 4))], axis=1)
    _, _, error = nystrom(a.T @ a / 300, random.normal(size=(3, 8)), 4, 1e-2)
    assert error < 1e-5


def test_queries_and_keys_keep_whole_pairs_by_their_products() -> None:
    scores = np.array([[1.0, 9, 2, 3, 1, 0, 2, 7], [5, 1, 1, 1, 5, 1, 8, 1]])
    assert choose_channels(scores, 4, pairs=True).tolist() == [[1, 3, 5, 7], [0, 2, 4, 6]]
    assert choose_channels(scores, 3, pairs=False).tolist() == [[1, 3, 7], [0, 4, 6]]


def test_values_keep_the_best_product_of_their_rank(random: np.random.Generator) -> None:
    """Against the singular values of all values times the matrix that reads them."""
    v = random.normal(size=(100, 6)) @ random.normal(size=(6, 6))
    rows = random.normal(size=(6, 9))
    basis, back, lost, whole = best_basis(v.T @ v / 100, rows, 4)
    singular = np.linalg.svd(v @ rows, compute_uv=False)
    wrong = np.square(v @ rows - v @ basis @ back @ rows).sum()

    np.testing.assert_allclose(wrong, np.square(singular[4:]).sum(), rtol=1e-9)
    np.testing.assert_allclose([lost * 100, whole * 100], [wrong, np.square(singular).sum()])


@pytest.mark.parametrize("size", [4, 6])
def test_a_basis_of_full_rank_is_exact(random: np.random.Generator, size: int) -> None:
    """Also where values have fewer directions than channels."""
    v = random.normal(size=(50, size)) @ random.normal(size=(size, 6))
    rows = random.normal(size=(6, 9))
    basis, back, _, _ = best_basis(v.T @ v, rows, size)
    np.testing.assert_allclose(v @ basis @ back @ rows, v @ rows, atol=1e-7)
    assert max(np.abs(basis).max(), np.abs(back).max()) < 1e4, "rounding is not divided by"


def test_what_data_says_nothing_of_is_kept_where_there_is_room(random: np.random.Generator) -> None:
    """One token and three directions: that of the token, and those that are read most."""
    v, rows = random.normal(size=(1, 6)), random.normal(size=(6, 9))
    basis, back, lost, _ = best_basis(v.T @ v, rows, 3)
    span = np.linalg.svd(v)[2][1:]
    most = np.linalg.svd(span @ rows, compute_uv=False)
    wrong = span @ rows - span @ basis @ back @ rows

    np.testing.assert_allclose(v @ basis @ back, v, atol=1e-9)
    np.testing.assert_allclose(np.square(wrong).sum(), np.square(most[2:]).sum())
    assert lost < 1e-9
    assert max(np.abs(basis).max(), np.abs(back).max()) < 1e2


def test_ratios_follow_importance_and_keep_their_mean() -> None:
    found = allocate([0.9, 0.1, 0.2, 0.1], 0.4, 0.1)
    assert abs(np.mean(found) - 0.4) < 1e-12
    assert max(found) <= 0.8
    assert found[0] < found[2] < found[1]
    assert allocate([1.0, 2.0], 0.9, 0.1) == [0.9, 0.9]
    np.testing.assert_allclose(allocate([3.0, 1.0, 2.0], 0.5, 1e-9), [0, 0.8, 0.7], atol=1e-12)


def model(**sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    module = build(
        Config(
            **{"hidden_size": 32, "intermediate_size": 40, "num_layers": 2, "vocab_size": 64}
            | sizes
        )
    )
    for parameter in module.parameters():
        if parameter.ndim == 2:
            parameter.data *= 8
    return module.eval()


def ids(rows: int = 24) -> dict[str, Any]:
    return {"input_ids": np.random.default_rng(0).integers(0, 64, (rows, 16))}


Graph = tuple[Source, trace.Traced]


@pytest.fixture(scope="module")
def graph() -> Graph:
    source = load_source(model(), inputs={"input_ids": torch.arange(8)[None]})
    found = trace.trace(source)
    pipeline.run(found.model, pipeline.tidy(), Context())
    return source, found


def compress(
    graph: Graph,
    *,
    work: Path | None = None,
    rows: int = 24,
    where: Where = Where(),  # noqa: B008  frozen
    **options: Any,
) -> PassResult:
    source, found = graph
    context = Context(calibration=read_calibration(ids(rows), source), work=work, where=where)
    return Modegpt(**options).run(found.model.clone(), context)


def exported(out: Path, *passes: str, rows: int = 24, **sizes: Any) -> ExportReport:
    inputs = {"input_ids": torch.arange(8)[None]}
    return intaglio.export(
        model(**sizes), out, passes=list(passes), calib=ids(rows), inputs=inputs, kv="grow"
    )


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    out = tmp_path_factory.mktemp("modegpt") / "bundle"
    return out, exported(out, f"modegpt:ratio={RATIO}")


def details(report: ExportReport) -> dict[str, Any]:
    record = next(r for r in report.manifest.main.passes if r["name"] == "modegpt")
    found: dict[str, Any] = record["details"]
    return found


def test_a_compressed_bundle_computes_what_its_source_does_with_its_weights(
    compressed: tuple[Path, ExportReport],
) -> None:
    """Outputs and caches of fewer entries; the error of compression is told apart."""
    out, report = compressed
    assert report.parity is not None
    moved = report.parity.quantization or {}
    verified = intaglio.verify(out, model(), inputs={"input_ids": torch.arange(8)[None]}, steps=16)

    assert report.parity.passed
    assert verified.passed
    assert "with its weights compressed" in report.parity.against
    assert not report.parity.unknown
    assert moved["logits"] > 1e-3
    widths = {spec.input: spec.shape[-1] for spec in report.manifest.main.states}
    assert set(widths.values()) == {6}  # of 8, in whole pairs


def test_the_record_tells_what_each_part_lost(compressed: tuple[Path, ExportReport]) -> None:
    found = details(compressed[1])
    before, after = found["parameters"]
    kinds = {(layer["kind"], *layer["channels"]) for layer in found["layers"]}

    assert kinds == {("mlp", 40, 30), ("qk", 8, 6), ("vo", 8, 6)}
    assert after == pytest.approx(before * (1 - RATIO))
    assert all(0 < layer["error"] < 1 for layer in found["layers"])
    assert [stage["stage"] for stage in found["stages"]] == ["dense", "modegpt"]
    assert found["allocation"] == "uniform"
    json.dumps(found)


def test_a_ratio_of_zero_changes_nothing(graph: Graph) -> None:
    assert not compress(graph, ratio=0.0).changed


def test_data_does_better_than_the_sizes_of_weights(graph: Graph) -> None:
    """By magnitude nothing is repaired, and no error of a part is known."""
    found = compress(graph, ratio=0.5, by="magnitude")
    assert all(layer["error"] is None for layer in found.details["layers"])
    worse, better = (
        compress(graph, ratio=0.5, by=by).details["stages"][1]["perplexity"]
        for by in ("magnitude", "data")
    )
    assert better < worse


def test_bits_come_after_it(tmp_path: Path) -> None:
    """The weights that are left are quantized, and verified as such."""
    report = exported(tmp_path / "both", f"modegpt:ratio={RATIO}", "rtn:bits=8,group=-1")
    assert report.parity is not None
    assert report.parity.passed
    assert "dequantized and compressed" in report.parity.against


def test_parts_are_solved_alike_in_processes(graph: Graph) -> None:
    here, beside = (compress(graph, where=Where(jobs=jobs)).details for jobs in (1, 2))
    assert here["layers"] == beside["layers"]
    assert here["stages"] == beside["stages"]
    assert here["placed"] == beside["placed"]


def test_blocks_of_another_model_are_not_tuned(tmp_path: Path) -> None:
    """The block stage of decoupleQ runs the source's module, which has wider layers."""
    few = "decoupleq:bits=8,group=-1,layers=['*0.mixer.o_proj']"
    report = exported(tmp_path / "both", f"modegpt:ratio={RATIO}", few)
    assert report.parity is not None
    assert report.parity.passed
    assert any("so that the module is another model" in note for note in report.notes)


def test_other_weights_than_the_sources_do_not_pass(compressed: tuple[Path, ExportReport]) -> None:
    torch.manual_seed(1)
    other = model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(parameter[torch.randperm(len(parameter))])
    report = intaglio.verify(
        compressed[0], other, inputs={"input_ids": torch.arange(8)[None]}, steps=16
    )
    assert not report.passed


def test_a_run_that_was_cut_off_goes_on(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished is read from the work folder, and gives the same."""
    plain = compress(graph, ratio=RATIO)
    asked: list[str] = []
    moment = _moments._moment

    def counted(run: Any, wanted: Any, data: Any) -> Array:
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(wanted.key)
        return moment(run, wanted, data)

    monkeypatch.setattr(_moments, "_moment", counted)
    with pytest.raises(KeyboardInterrupt):
        compress(graph, work=tmp_path, ratio=RATIO)
    monkeypatch.setattr(_moments, "_moment", moment)
    kept = len(list(tmp_path.iterdir()))
    again = compress(graph, work=tmp_path, ratio=RATIO)

    assert kept == 4
    assert len(list(tmp_path.iterdir())) == 8
    assert again.details["layers"] == plain.details["layers"]


def test_a_ratio_that_leaves_no_channel_is_refused(graph: Graph) -> None:
    with pytest.raises(PassError, match=r"leaves none. At most 0.75 leaves one"):
        compress(graph, ratio=0.95)


def test_globs_that_fit_nothing_are_told_with_what_there_is(graph: Graph) -> None:
    """Paths and kinds, so that the right ones can be typed."""
    said = r"leaves out layers\.0\.mlp \(mlp\), .*layers\.1\.mixer \(vo\)"
    with pytest.raises(PassError, match=said):
        compress(graph, layers=["nothing"])


def test_options_without_sense_are_refused() -> None:
    for options in ({"ratio": 1.0}, {"ratio": -0.1}, {"modules": ["heads"]}, {"eps": 0.0}):
        with pytest.raises(PassError, match="modegpt"):
            Modegpt(**options).check_options(data=True)


def test_data_is_needed(graph: Graph) -> None:
    with pytest.raises(PassError, match="modegpt needs data"):
        Modegpt().run(graph[1].model.clone(), Context())


def test_importance_is_how_far_each_block_turns_its_stream() -> None:
    """Against the module's own layers; from eight blocks on it decides what each loses."""
    module = model(num_layers=8)
    source = load_source(module, inputs={"input_ids": torch.arange(8)[None]})
    found = trace.trace(source).model
    pipeline.run(found, pipeline.tidy(), Context())
    data = read_calibration(ids(), source)
    context = Context(calibration=data)
    rows = [torch.from_numpy(data.batches[i].inputs["input_ids"]) for i in data.fitted]
    module.requires_grad_(requires_grad=False)
    streams = [cast("Any", module).embed_tokens(torch.cat(rows))]
    for layer in cast("Any", module).layers:
        streams.append(layer(streams[-1]))
    wanted = [float(1 - F.cosine_similarity(a, b, dim=-1).mean()) for a, b in pairwise(streams)]
    scores = _moments.importance(found, context, [f"layers.{i}" for i in range(8)])
    details = Modegpt(ratio=RATIO).run(found, context).details

    assert scores == pytest.approx(wanted, rel=1e-4)
    assert details["allocation"] == "importance"
    assert np.mean(list(details["lost"].values())) == pytest.approx(RATIO)
    assert details["lost"]["layers.7"] > details["lost"]["layers.0"]


def test_few_tokens_are_told_and_damped(graph: Graph) -> None:
    found = compress(graph, rows=2, ratio=RATIO)
    before, after = (stage["perplexity"] for stage in found.details["stages"])

    assert "16 tokens to learn from, fewer than the channels" in found.advice[0]
    assert after < 10 * before


def test_norms_of_queries_are_told(traced: Traced) -> None:
    """Channels between a projection and a norm over them cannot leave."""

    class Normed(Attention):
        def rotate(self, x: Tensor) -> Tensor:
            return super().rotate(F.normalize(x, dim=-1))

    made, context = traced(Residual(Normed(), Attention()))
    pipeline.run(made, pipeline.tidy(), context)
    rows = np.random.default_rng(0).integers(0, 31, (16, 9))
    batches = [Batch(inputs={"input_ids": rows[i : i + 4]}, rows=4, steps=9) for i in (0, 4, 8)]
    context.calibration = Calibration(batches=batches, sha256="")
    found = Modegpt(ratio=RATIO).run(made, context)

    kinds = {(layer["path"], layer["kind"]) for layer in found.details["layers"]}
    assert kinds == {("layers.0", "vo"), ("layers.1", "qk"), ("layers.1", "vo")}
    assert "layers.0 (qk)" in found.details["left"]
