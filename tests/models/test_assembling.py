"""Deep model assembling: stages are the equations of a ViT, in the released names too."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.load import load_source
from intaglio.models.assembling import (
    ASSEMBLING,
    HYBRIDS,
    META,
    TINY,
    Assembled,
    Config,
    Incubation,
    build,
    by_stage,
    inputs,
    resize,
)
from intaglio.models.model import save

Array = npt.NDArray[Any]
SMALL = replace(TINY, image_size=6, patch_size=2, hidden_size=6, depths=(1, 2), classes=3)
LAYOUT = ASSEMBLING.layouts[0]
KEYS = json.loads((Path(__file__).parents[1] / "data/keys/assembling.json").read_text())["keys"]


def randomised(config: Config) -> Assembled:
    """A module with every weight away from the value that it starts with."""
    torch.manual_seed(0)
    module = build(config).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def official(module: Assembled) -> dict[str, torch.Tensor]:
    """Its tensors as released files have them: blocks counted through all stages as well."""
    found, count = dict(module.state_dict()), 0
    for place, stage in enumerate(module.stages):
        for name, tensor in stage.state_dict().items():
            part, _, rest = name.removeprefix("blocks.").partition(".")
            twin = f"blocks.{count + int(part)}.{rest}" if name.startswith("blocks.") else name
            found[twin] = tensor
        count += SMALL.depths[place]
    return found


def norm(w: dict[str, Array], name: str, x: Array) -> Array:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return np.asarray(y * w[f"{name}.weight"] + w[f"{name}.bias"])


def linear(w: dict[str, Array], name: str, x: Array) -> Array:
    return np.asarray(x @ w[f"{name}.weight"].T + w[f"{name}.bias"])


def block(w: dict[str, Array], start: str, x: Array, heads: int) -> Array:
    packed = linear(w, f"{start}.attn.qkv", norm(w, f"{start}.norm1", x))
    q, k, v = (part.reshape(len(x), heads, -1) for part in np.split(packed, 3, 1))
    mixed = np.zeros_like(q)
    for h, i in np.ndindex(heads, len(x)):
        shares = np.exp([q[i, h] @ k[j, h] / math.sqrt(q.shape[-1]) for j in range(len(x))])
        mixed[i, h] = shares / shares.sum() @ v[:, h]
    x = x + linear(w, f"{start}.attn.proj", mixed.reshape(len(x), -1))
    u = linear(w, f"{start}.mlp.fc1", norm(w, f"{start}.norm2", x))
    u = u * np.vectorize(lambda z: (1 + math.erf(z / math.sqrt(2))) / 2)(u)
    return x + linear(w, f"{start}.mlp.fc2", u)


def test_stages_in_a_row_are_the_equations_of_a_vit() -> None:
    """Blocks counted through all stages, as the released names of the whole have them."""
    module = randomised(SMALL).double()
    image = inputs(SMALL, 2, 1, torch.Generator().manual_seed(0))["image"].double()
    with torch.no_grad():
        found = module(image).numpy()
    w = {name: tensor.numpy() for name, tensor in official(module).items()}
    kernel = w["patch_embed.proj.weight"]
    for row, picture in enumerate(image.numpy()):
        tokens = [w["cls_token"][0, 0]]
        for r, c in np.ndindex(3, 3):
            square = picture[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2]
            tokens.append((kernel * square).sum((1, 2, 3)) + w["patch_embed.proj.bias"])
        x = np.array(tokens) + w["pos_embed"][0]
        for index in range(3):
            x = block(w, f"blocks.{index}", x, SMALL.heads)
        wanted = linear(w, "head", norm(w, "norm", x)[0])
        np.testing.assert_allclose(found[row], wanted, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
def test_the_released_keys_are_those_of_the_module(*, bias: bool) -> None:
    """ViT-B/16 at full size; ViT-H has no biases of queries, keys and values."""
    shapes = {n: tuple(s) for n, s in KEYS.items() if bias or not n.endswith("qkv.bias")}
    assert LAYOUT.fits({}, shapes)
    config = ASSEMBLING.configure(LAYOUT.configure({}, shapes))
    assert (config.heads, config.depths, config.image_size) == (12, (3, 3, 3, 3), 224)
    with torch.device("meta"):
        module = build(config)
    one = torch.zeros(())
    found = LAYOUT.weights({name: one.expand(shape) for name, shape in shapes.items()}, config)
    assert {n: x.shape for n, x in found.items()} == {
        n: x.shape for n, x in module.state_dict().items()
    }


def test_a_released_file_is_read_and_its_twins_are_held_to_each_other(tmp_path: Path) -> None:
    module = randomised(SMALL)
    tensors = official(module)
    torch.save({"model": tensors, "epoch": 1}, tmp_path / "vit.pth")
    source = load_source(tmp_path / "vit.pth", config={"heads": 2})
    image = inputs(SMALL, 2, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(source.module(**image), module(**image), rtol=0, atol=0)

    torch.save({"model": {**tensors, "blocks.2.mlp.fc1.bias": torch.zeros(24)}}, tmp_path / "b.pth")
    words = "'stages.1.blocks.1.mlp.fc1.bias' and 'blocks.2.mlp.fc1.bias' should be the same"
    with pytest.raises(SourceError, match=words):
        load_source(tmp_path / "b.pth", config={"heads": 2})
    del tensors["blocks.1.norm1.bias"]
    torch.save({"model": tensors}, tmp_path / "c.pth")
    with pytest.raises(SourceError, match=r"its file lacks 'blocks\.1\.norm1\.bias'"):
        load_source(tmp_path / "c.pth", config={"heads": 2})


def cubic(x: float) -> float:
    """Keys' kernel of a = -3/4."""
    a, x = -0.75, abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def test_tables_of_positions_are_resized_by_cubic_interpolation() -> None:
    """Places are middles of patches, edges are repeated, and the class keeps its own."""
    table = torch.randn(1, 10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = resize("pos_embed", table, (1, 26, 2))
    assert found is not None
    grid = table[0, 1:].numpy().reshape(3, 3, 2)
    torch.testing.assert_close(found[0, 0], table[0, 0])
    for r, c in np.ndindex(5, 5):
        y, x = ((place + 0.5) * 3 / 5 - 0.5 for place in (r, c))
        wanted = np.zeros(2)
        for i, j in np.ndindex(4, 4):
            at = math.floor(y) + i - 1, math.floor(x) + j - 1
            share = cubic(y - at[0]) * cubic(x - at[1])
            wanted += share * grid[min(max(at[0], 0), 2), min(max(at[1], 0), 2)]
        np.testing.assert_allclose(found[0, 1 + 5 * r + c].numpy(), wanted, atol=1e-5)
    with pytest.raises(SourceError, match="pos_embed has 12 places, which are not those of a sq"):
        resize("pos_embed", torch.zeros(1, 12, 2), (1, 26, 2))


def test_a_stage_is_trained_in_its_place_and_all_others_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    meta, hybrid = build(META), build(HYBRIDS["hybrid1"])
    save(tmp_path / "meta.pt", "assembling", META, meta)
    before = {name: tensor.clone() for name, tensor in hybrid.state_dict().items()}
    Incubation(steps=2).train(hybrid, None, tmp_path / "meta.pt")
    given, after = by_stage(meta.state_dict()), by_stage(hybrid.state_dict())
    for place in (0, 2):
        assert all(torch.equal(after[place][name], x) for name, x in given[place].items())
    moved = {n for n, x in hybrid.state_dict().items() if not torch.equal(x, before[n])}
    assert {n for n in moved if n.startswith("stages.1.")} == {
        n for n in before if n.startswith("stages.1.")
    }
    before = {name: tensor.clone() for name, tensor in meta.state_dict().items()}
    Incubation(steps=2).train(meta, None, tmp_path / "meta.pt")  # all are alike: all are trained
    assert not any(torch.equal(x, before[name]) for name, x in meta.state_dict().items())
    with pytest.raises(SourceError, match="has no stage of the sizes that this model's have"):
        Incubation(steps=2).train(build(SMALL), None, tmp_path / "meta.pt")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"depths": ()}, r"depths = \[\]; it should have an entry for each stage"),
        ({"image_size": 25}, "image_size = 25; it should be a multiple of 6"),
        ({"heads": 3}, "heads = 3; they should divide hidden_size, 32"),
    ],
)
def test_sizes_that_do_not_fit_are_told(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        build(replace(TINY, **values))
