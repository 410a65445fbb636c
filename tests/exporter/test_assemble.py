"""Stages of several files make the model that they are in a row, and what does not fit is named."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from intaglio.errors import BundleError, OptionError, SourceError
from intaglio.exporter.assemble import assemble
from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.models.assembling import HYBRIDS, META, TINY, Assembled, Config, build, inputs
from intaglio.models.model import save
from intaglio.runtime import Chain, Session

IMAGE = inputs(TINY, 3, 1, torch.Generator().manual_seed(0))["image"]
STAGES = ["stage0", "stage1"]


def module(config: Config, seed: int) -> Assembled:
    torch.manual_seed(seed)
    made = build(config).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


MODULES = {name: module(config, seed) for seed, (name, config) in enumerate(HYBRIDS.items())}
META_MODULE = module(META, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hybrids as checkpoints of ours, the first as a released file has it, and the meta model."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("stages")
    for name, config in HYBRIDS.items():
        save(root / f"{name}.pt", "assembling", config, MODULES[name])
    save(root / "meta.pt", "assembling", META, META_MODULE)
    torch.save({"model_stages": listed("hybrid0"), "epoch": 3}, root / "released.pth")
    torch.save(MODULES["hybrid1"].stages[1].state_dict(), root / "alone.pt")
    return root


def listed(name: str) -> list[dict[str, torch.Tensor]]:
    return [dict(stage.state_dict()) for stage in MODULES[name].stages]


def in_a_row(*stages: nn.Module) -> torch.Tensor:
    x = IMAGE
    with torch.no_grad():
        for stage in stages:
            x = stage(x)
    return x


WHOLE = [MODULES[name].stages[place] for place, name in enumerate(HYBRIDS)]


@pytest.mark.parametrize("files", [("hybrid0.pt", "hybrid1.pt"), ("released.pth", "alone.pt")])
def test_the_whole_is_the_stages_in_a_row(
    folder: Path, tmp_path: Path, files: tuple[str, str]
) -> None:
    """Of each file the stage at its place, whatever form the file has."""
    paths = [folder / name for name in (*files, "hybrid2.pt")]
    made = assemble(paths, tmp_path / "whole.pt")
    source = load_source(tmp_path / "whole.pt")
    with torch.no_grad():
        found = source.module(IMAGE)
    torch.testing.assert_close(found, in_a_row(*WHOLE), rtol=0, atol=0)
    assert made.depths == (2, 2, 2)
    assert sum(made.parameters) == sum(x.numel() for x in source.module.parameters())


def test_stages_chained_are_the_whole_and_each_is_replaced_by_itself(tmp_path: Path) -> None:
    """A graph for each in one bundle, and another last stage in a bundle of its own."""
    two = replace(TINY, depths=(1, 1))
    modules = [module(two, seed) for seed in range(3)]
    paths = [tmp_path / f"{seed}.pt" for seed in range(2)]
    for path, each in zip(paths, modules, strict=False):
        save(path, "assembling", two, each)
    assemble(paths, tmp_path / "whole.pt", config={"separate": True})
    report = export(tmp_path / "whole.pt", tmp_path / "whole")
    assert list(report.manifest.graphs) == ["main", *STAGES]
    assert {e.targets["ort"].parity for e in report.manifest.graphs.values()} == {"passed"}
    image = {"image": IMAGE.numpy()}
    whole = Session.load(tmp_path / "whole").step(image)["output"]
    chained = Chain.load(tmp_path / "whole", STAGES).step(image)["output"]
    np.testing.assert_allclose(chained, whole, rtol=1e-5, atol=1e-5)
    first, *lasts = modules[0].stages[0], modules[1].stages[1], modules[2].stages[1]
    wanted = [in_a_row(first, last).numpy() for last in lasts]
    np.testing.assert_allclose(whole, wanted[0], rtol=1e-4, atol=1e-4)

    row = {"tokens": "batchx17x32"}
    export(lasts[1], tmp_path / "last", inputs={"tokens": torch.zeros(2, 17, 32)}, axes=row)
    swapped = Chain.load(tmp_path / "whole", STAGES, replaced={"stage1": tmp_path / "last"})
    np.testing.assert_allclose(swapped.step(image)["output"], wanted[1], rtol=1e-4, atol=1e-4)
    assert np.abs(wanted[1] - wanted[0]).max() > 0.01
    with pytest.raises(BundleError, match=r"takes 'image' float32 \[batch, 3, 24, 24\]"):
        Chain.load(tmp_path / "whole", ["stage1", "stage0"])


def test_positions_are_resized_to_another_picture(folder: Path, tmp_path: Path) -> None:
    paths = [folder / f"{name}.pt" for name in HYBRIDS]
    made = assemble(paths, tmp_path / "large.pt", config={"image_size": 36})
    assert made.notes == ("stages.0.pos_embed is resized from [1, 17, 32] to [1, 37, 32].",)
    source = load_source(tmp_path / "large.pt")
    assert source.module(torch.zeros(2, 3, 36, 36)).shape == (2, 8)
    bare = tmp_path / "bare.pth"
    torch.save({"model_stages": listed("hybrid0")}, bare)
    said = "No file says heads; it is taken to be 1. Give another with --config."
    assert assemble(3 * [bare], tmp_path / "guessed.pt").notes == (said,)
    without = {**listed("hybrid0")[0], "pos_embed": torch.zeros(1, 1, 32)}
    torch.save({"model_stages": [without, *listed("hybrid0")[1:]]}, bare)
    with pytest.raises(SourceError, match="has 1 places, which are not those of a square"):
        assemble(3 * [bare], tmp_path / "none.pt", config={"image_size": 24})


def changed(path: Path, **values: Any) -> Path:
    held = torch.load(path)
    for name, value in values.items():
        held[name] = value
    torch.save(held, path.with_name("changed.pt"))
    return path.with_name("changed.pt")


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    first, second, third = (folder / f"{name}.pt" for name in HYBRIDS)
    alone, out = folder / "alone.pt", tmp_path / "out.pt"
    narrow = replace(TINY, hidden_size=16)
    save(folder / "narrow.pt", "assembling", narrow, build(narrow))
    four = replace(META, heads=4)
    save(folder / "four.pt", "assembling", four, build(four))
    other = {**listed("hybrid0")[0], "pos_embed": torch.zeros(1, 17, 32)}
    state = MODULES["hybrid0"].state_dict()
    twice = {"model_stages": [other, *listed("hybrid0")[1:]], "model": state}
    torch.save(twice, folder / "twice.pth")
    extra = {**listed("hybrid1")[1], "blocks.0.gamma": torch.zeros(3)}
    torch.save(extra, folder / "extra.pt")
    lacking = {n: x for n, x in listed("hybrid1")[1].items() if n != "blocks.1.mlp.fc1.bias"}
    torch.save(lacking, folder / "lacking.pt")
    nan = {**listed("hybrid1")[1], "blocks.0.norm1.bias": torch.full((32,), torch.nan)}
    torch.save(nan, folder / "nan.pt")
    torch.save({**state, "stages.7.x": torch.zeros(1)}, folder / "seven.pt")
    cases: dict[str, list[Path]] = {
        "hybrid1.pt is given for the stage 0, and the stage 1 is the one": [second, first, third],
        "alone.pt is not the first stage of a model, as it lacks 'patch_embed'": [
            alone, folder / "meta.pt", third
        ],
        "has 3 stages, and files for 2 are given": [first, second],
        "alone.pt is not the last stage of a model, as it lacks 'norm'": [
            folder / "released.pth", folder / "meta.pt", alone
        ],
        "norm1.weight of the stage 1 is [16] in": [first, folder / "narrow.pt", third],
        "heads is 4 in": [first, folder / "four.pt", third],
        "model_stages[0] 'pos_embed' and 'stages.0.pos_embed' with different values": [
            folder / "twice.pth", second, third
        ],
        "stage 1, has 'blocks.0.gamma', which is no tensor of": [first, folder / "extra.pt", third],
        "stage 1, lacks 'blocks.1.mlp.fc1.bias'": [first, folder / "lacking.pt", third],
        "'blocks.0.norm1.bias' holds NaN": [first, folder / "nan.pt", third],
        "has a stage '7'; its 4 stages should be counted": [folder / "seven.pt", second, third],
        "is of the model 'llama', not 'assembling'": [changed(first, model="llama"), second, third],
    }  # fmt: skip
    for words, paths in cases.items():
        with pytest.raises(SourceError, match=re.escape(words)):
            assemble(paths, out)
    assert list(tmp_path.iterdir()) == []
    good = [first, second, third]
    with pytest.raises(SourceError, match="classes = 3, and the stages have 8"):
        assemble(good, out, config={"classes": 3})
    with pytest.raises(SourceError, match="llama has no stages: --model assembling"):
        assemble(good, out, model="llama")
    with pytest.raises(OptionError, match="exists"):
        assemble(good, first)
    with pytest.raises(OptionError, match="is one of the stages"):
        assemble(good, first, force=True)
