"""Weights in the layout of other code become a model of ours, or what does not fit is named."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor, nn

from intaglio import models
from intaglio.errors import OptionError, SourceError
from intaglio.exporter.export import export
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.sources.load import load_source
from intaglio.models import CheckpointLayout, Model
from intaglio.models.layout import read_value, refuse, renamed
from intaglio.models.model import token_ids
from intaglio.runtime.bundle import Bundle


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: int = 260
    width: int = 4
    kinds: tuple[str, ...] = ()


class Net(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.up = nn.Linear(config.width, config.width, bias=False)
        self.down = nn.Linear(config.width, config.width, bias=False)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        y: Tensor = self.head(self.down(self.up(x).cumsum(1)))
        return y


def fits(values: Mapping[str, Any], keys: Collection[str]) -> bool:
    return values.get("model_type") == "netted" or (not values and "net.fused" in keys)


def configure(values: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    refuse(values, {"gated": (False, None)})
    width = read_value(values, "size", int, shapes["net.emb"][1])
    return {"vocab_size": shapes["net.emb"][0], "width": width, "kinds": ["a", "b"]}


def weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    up, down = torch.split(tensors["net.fused"], config.width)
    return {**renamed(tensors, {"embed.weight": "net.emb"}), "up.weight": up, "down.weight": down.T}


LAYOUT = CheckpointLayout(name="netted", source="", fits=fits, configure=configure, weights=weights)
NET = Model(
    name="net",
    summary="",
    config=Config,
    build=Net,
    inputs=token_ids,
    presets={},
    recipe=None,
    source="",
    layouts=(LAYOUT,),
)
FILE: dict[str, Tensor] = {
    "net.emb": torch.linspace(-1, 1, 1040).reshape(260, 4),
    "net.fused": torch.linspace(-1, 2, 32).reshape(8, 4).bfloat16(),
}
JSON = {"model_type": "netted", "vocab_size": 260, "auto_map": {"AutoModel": "planted.Net"}}


@pytest.fixture(autouse=True)
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(models, "MODELS", (NET,))
    monkeypatch.chdir(tmp_path)


def made(config: Mapping[str, Any] = JSON, tensors: Mapping[str, Tensor] = FILE) -> Path:
    """A directory with a tokenizer-less config and weights."""
    path = Path("netted")
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), path / "model.safetensors")
    return path


def same_as_the_file(module: nn.Module) -> bool:
    fused = FILE["net.fused"].float()
    state = module.state_dict()
    return (
        torch.equal(state["embed.weight"], FILE["net.emb"])
        and torch.equal(state["up.weight"], fused[:4])
        and torch.equal(state["down.weight"], fused[4:].T)
    )


@pytest.mark.parametrize("named", [None, "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_file_is_told_by_its_names_or_read_as_the_model_that_is_named(
    named: str | None, prefix: str
) -> None:
    torch.save({prefix + name: value for name, value in FILE.items()}, "weights.pt")

    source = load_source("weights.pt", model=named)

    assert same_as_the_file(source.module)
    assert (source.model, source.config) == ("net", {})
    assert "weights.pt is read in the layout 'netted' of the model 'net'." in source.notes


def test_a_directory_is_built_without_the_library_and_its_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its config.json names code, which is neither run nor asked for; nor is transformers."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    source = load_source(made())

    assert same_as_the_file(source.module)
    assert (source.model, source.config, source.format) == ("net", JSON, "huggingface/safetensors")
    with pytest.raises(OptionError, match="--axes says nothing about"):
        load_source("netted", axes={"input_ids": "batchxtime"})


def test_export_verify_and_the_recipe_go_through_layouts() -> None:
    """The bundle names what it needs to be held to its source again."""
    torch.save(FILE, "weights.pt")
    made()
    for path, format_ in (("weights.pt", "torch"), ("netted", "huggingface/safetensors")):
        report = export(path, Path(f"{path}.bundle"), steps=8)
        assert report.parity is not None
        assert report.parity.passed
        manifest = Bundle.open(Path(f"{path}.bundle")).manifest
        assert (manifest.source["format"], manifest.source["model"]) == (format_, "net")
        assert verify(f"{path}.bundle", path, steps=4).passed


def test_a_tokenizer_of_the_directory_comes_along() -> None:
    made()
    Tokenizer(BPE(vocab={"a": 0, "b": 1}, merges=[])).save("netted/tokenizer.json")

    text = load_source("netted").text

    assert text is not None
    assert set(text.files) == {"tokenizer.json"}


def test_weights_that_are_ours_are_read_as_they_are() -> None:
    """A layout is not asked where names and shapes are the model's own."""
    always = replace(LAYOUT, fits=lambda *_: True)
    net = replace(NET, layouts=(always,))
    models.MODELS = (net,)
    state = Net(Config()).state_dict()
    torch.save(state, "ours.pt")

    source = load_source("ours.pt", model="net")

    assert torch.equal(source.module.state_dict()["up.weight"], state["up.weight"])
    assert not any("layout" in note for note in source.notes)


def test_where_two_fit_the_model_is_asked_for() -> None:
    models.MODELS = (NET, replace(NET, name="other"))
    path = made()

    with pytest.raises(SourceError, match=r"'net' and the layout .* --model net or --model other"):
        load_source(path)
    assert load_source(path, model="other").model == "other"
    export(path, Path("bundle"), model="other", steps=4)
    assert verify("bundle", path, steps=2).passed


def test_where_none_fits_it_is_said() -> None:
    torch.save({"a": torch.ones(2)}, "weights.pt")

    with pytest.raises(SourceError, match="no layout that is known fits their names"):
        load_source("weights.pt")
    path = made({"model_type": "else"})
    with pytest.raises(SourceError, match=r"in no layout of the model 'net' \(it has: netted\)"):
        load_source(path, model="net")


FUSED = "net.fused"


@pytest.mark.parametrize(
    ("values", "entry", "message"),
    [
        ({}, {FUSED: None}, r"its file lacks 'net\.fused'"),
        ({}, {"net.more": torch.ones(2)}, r"Unexpected in the file \(1 of 3\):\n  net\.more"),
        (
            {},
            {FUSED: torch.ones(8, 5)},
            r"net\.fused: \[4, 5\] in the file, \[4, 4\] in the model",
        ),
        ({}, {FUSED: torch.ones(3, 4)}, "not enough values to unpack"),
        ({}, {FUSED: torch.full((8, 4), torch.nan)}, r"'net\.fused' holds NaN"),
        ({"gated": True}, {}, "its config has gated = True, of which only False or None is"),
        ({"size": "4"}, {}, "its config has size = '4'; it should be an integer of at least 1"),
        ({"size": 10**9}, {}, "unpack"),
    ],
)
def test_what_does_not_fit_is_named_as_the_file_names_it(
    values: dict[str, Any], entry: dict[str, Tensor | None], message: str
) -> None:
    changed = {**FILE, **entry}
    tensors = {name: value for name, value in changed.items() if value is not None}

    with pytest.raises(SourceError, match=message):
        load_source(made({**JSON, **values}, tensors))


def test_a_tensor_that_repeats_its_numbers_is_refused() -> None:
    """A file of a few bytes cannot ask for a huge tensor."""
    torch.save({**FILE, "net.fused": torch.ones(1).expand(1 << 40, 4)}, "weights.pt")

    with pytest.raises(SourceError, match=r"'net\.fused' repeats the numbers"):
        load_source("weights.pt", model="net")
