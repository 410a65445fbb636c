"""Several graphs of one module: each is a source by itself, with the names of the whole."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import intaglio
from intaglio import models
from intaglio.errors import BundleError, IntaglioError, OptionError, SourceError
from intaglio.exporter.export import ExportReport, export
from intaglio.exporter.options.recipe import Recipe
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.methods import as_forward
from intaglio.models import Model, find
from intaglio.models.model import token_ids
from intaglio.runtime import Session

FEATURES = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(0))


class Captioner(nn.Module):
    """An encoder of features, and a recurrent decoder that uses a layer of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(17, 32)
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32))
        self.rnn = nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, 17)

    def encode(self, features: Tensor) -> Tensor:
        found: Tensor = self.encoder(features)
        return found

    def decode(self, input_ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.rnn(self.encoder[2](self.embed(input_ids)))[0])
        return found


@pytest.fixture(scope="module")
def module() -> Captioner:
    torch.manual_seed(0)
    return Captioner().eval()


GRAPHS: dict[str, intaglio.Graph | str] = {
    "encode": intaglio.Graph("encoder", {"input": FEATURES}),
    "main": "decode",
}


@pytest.fixture(scope="module")
def exported(module: Captioner, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    out = tmp_path_factory.mktemp("methods") / "bundle"
    return export(module, out, graphs=GRAPHS, steps=20, check_passes=True)


def test_every_graph_is_verified_and_steps_as_the_module_does(
    exported: ExportReport, module: Captioner
) -> None:
    """The encoder by its path, the decoder by its method, states and all."""
    encode, main = (Session.load(exported.out, graph=name) for name in ("encode", "main"))
    ids = torch.arange(10).reshape(2, 5)
    found = encode.step({"input": FEATURES.numpy()})["output"]
    parts = [main.step({"input_ids": ids[:, at : at + 1].numpy()}) for at in range(5)]
    decoded = np.concatenate([next(iter(part.values())) for part in parts], axis=1)

    assert list(exported.manifest.graphs) == ["main", "encode"]
    assert all(graph.parity["passed"] for graph in exported.manifest.graphs.values())
    assert [spec.op for spec in main.entry.states] == ["rnn"]
    with torch.inference_mode():
        assert np.allclose(found, module.encode(FEATURES), atol=1e-5)
        assert np.allclose(decoded, module.decode(ids), atol=1e-5)


def test_what_graphs_share_is_stored_once(exported: ExportReport) -> None:
    """The second layer of the encoder lies in the file of main alone, whatever graph it is of."""
    data = {name for name in exported.manifest.files if name.endswith(".data")}

    assert data == {"model.onnx.data", "encode.onnx.data"}
    assert exported.manifest.files["encode.onnx.data"].bytes == 4 * 8 * 32
    assert exported.manifest.graphs["encode"].targets["ort"].data == tuple(sorted(data))


def test_the_recipe_repeats_the_methods(exported: ExportReport, module: Captioner) -> None:
    """And what each is traced with, where it has example inputs of its own."""
    recipe = Recipe.read(exported.out / "recipe.toml")

    assert {n: x["method"] for n, x in recipe.graphs.items()} == {
        "encode": "encoder",
        "main": "decode",
    }
    assert recipe.graphs["encode"]["inputs"]["input"]["shape"] == [3, 7, 8]
    report = verify(exported.out, load_source(module, graphs=GRAPHS), graph="encode", steps=9)
    assert report.passed
    with pytest.raises(BundleError, match="'encode', was not made from a method of the source"):
        verify(exported.out, load_source(as_forward(module, "decode")), graph="encode")


def test_examples_of_all_graphs_go_to_those_that_name_them(tmp_path: Path) -> None:
    """A file of arrays serves every graph, as the command line gives it."""
    torch.save(Captioner(), tmp_path / "model.pt")
    np.savez(tmp_path / "examples.npz", features=FEATURES.numpy())
    source = load_source(
        tmp_path / "model.pt",
        allow_pickle=True,
        inputs=tmp_path / "examples.npz",
        graphs={"main": "decode", "encode": "encode"},
        axes={"features": ["batch", "time", 8]},
    )

    assert source.dynamic == {"input_ids": {0: "batch", 1: "time"}}
    assert source.others["encode"].dynamic == {"features": {0: "batch", 1: "time"}}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"graphs": {"encode": "encode"}}, "one of them has to be called main"),
        ({"graphs": {"main": "decode", "../x": "encode"}}, "'../x' should be called by letters"),
        ({"graphs": {"main": "decoder"}}, r"no method 'decoder'.*it has: encode, decode, embed"),
        ({"graphs": {"main": "zero_grad"}}, "no method 'zero_grad'"),
        ({"graphs": {"main": "encode"}}, "'encode' of the graph 'main'"),
        (
            {"graphs": GRAPHS, "shapes": {"ids": (1, 2)}},
            "name 'ids'; the inputs .* input_ids, input",
        ),
        (
            {"graphs": GRAPHS, "passes": ["rtn:layers=['mix']"]},
            "'mix' fits none of the projections",
        ),
        ({"graphs": GRAPHS, "passes": ["rtn:layers=['rnn']"]}, "nothing to quantize in any graph"),
    ],
)
def test_what_does_not_fit_is_refused(
    module: Captioner, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(IntaglioError, match=words):
        export(module, tmp_path / "bundle", **options)
    assert not (tmp_path / "bundle").exists()


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: int = 17
    seen: int = 8


def test_a_model_of_ours_declares_its_graphs(
    module: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its config; nobody types them, not even to verify."""

    def graphs(config: Config) -> dict[str, intaglio.Graph]:
        features = torch.randn(3, 7, config.seen)
        return {"main": intaglio.Graph("decode"), "encode": intaglio.Graph("encode", (features,))}

    model = Model(
        name="captioner",
        summary="",
        config=Config,
        build=lambda _: Captioner(),
        inputs=token_ids,
        presets={},
        recipe=find("llama").recipe,
        source="",
        graphs=graphs,
    )
    monkeypatch.setattr(models, "MODELS", (*models.MODELS, model))
    models.save(tmp_path / "model.pt", "captioner", Config(), module)
    source = load_source(tmp_path / "model.pt")

    assert source.dynamic == {"input_ids": {0: "batch", 1: "time"}}
    assert source.others["encode"].dynamic == {"features": {0: "batch", 1: "time"}}
    assert source.others["encode"].beside == frozenset({"input_ids"})
    with pytest.raises(OptionError, match="--graph says nothing about the model 'captioner'"):
        load_source(tmp_path / "model.pt", graphs=GRAPHS)
    plain = replace(
        model, graphs=lambda _: {"main": intaglio.Graph(), "encode": intaglio.Graph("encode")}
    )
    monkeypatch.setattr(models, "MODELS", (plain,))
    with pytest.raises(SourceError, match="'encode' of the graph 'encode' takes features"):
        load_source(tmp_path / "model.pt")


def test_only_a_module_has_methods() -> None:
    with pytest.raises(OptionError, match="--graph says nothing about"):
        load_source(Path(__file__).parents[3] / "models/checkpoints/llama.pt", graphs=GRAPHS)
