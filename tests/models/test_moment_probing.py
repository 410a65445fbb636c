"""Moment probing: moments, recalibration and backbones are their equations."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import nn

from intaglio.errors import SourceError
from intaglio.exporter.export import export
from intaglio.models.moment_probing import (
    MOMENT_PROBING,
    TIMM,
    TINY,
    Config,
    OfPlanes,
    OfTokens,
    PlaneHead,
    TokenHead,
    build,
    inputs,
)
from intaglio.models.parts.backbones import ConvNeXtBlock, Merging, SwinBlock, TransformerBlock, ViT

Array = npt.NDArray[Any]
SWIN = replace(
    TINY,
    backbone="swin",
    image_size=32,
    patch_size=2,
    hidden_size=8,
    depths=(2, 2),
    heads=(2, 4),
    window=4,
)
CONVNEXT = replace(
    TINY, backbone="convnext", image_size=16, patch_size=2, hidden_size=8, depths=(1, 1)
)
KINDS = [TINY, SWIN, CONVNEXT]


def weights(module: nn.Module) -> dict[str, Array]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


Module = TypeVar("Module", bound=nn.Module)


def randomised(module: Module) -> Module:
    """Every weight away from the value that it starts with."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def gelu(x: Array) -> Array:
    return np.asarray(nn.functional.gelu(torch.from_numpy(x)).numpy())


def layer_norm(w: dict[str, Array], name: str, x: Array, eps: float) -> Array:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return np.asarray(y * w[f"{name}.weight"] + w[f"{name}.bias"])


def linear(w: dict[str, Array], name: str, x: Array) -> Array:
    return np.asarray(x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", np.zeros(1)))


def convolution(kernel: Array, x: Array) -> Array:
    """Of 3 x 3 in steps of two, entry by entry."""
    side = (x.shape[1] - 3) // 2 + 1
    y = np.zeros((len(kernel), side, side))
    for o, r, c in np.ndindex(y.shape):
        y[o, r, c] = (kernel[o] * x[:, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3]).sum()
    return y


def moments(w: dict[str, Array], heads: list[Array]) -> Array:
    """Covariances of neighbours, one sum for each pair of channels, and what is left of them."""
    pictures = []
    for first, second in pairwise(heads):
        a, b = (layer_norm(w, "moments.ln", u, 1e-5) for u in (first, second))
        a, b = a - a.mean(), b - b.mean()
        picture = np.zeros((a.shape[1], b.shape[1]))
        for i, j in np.ndindex(picture.shape):
            picture[i, j] = sum(a[n, i] * b[n, j] for n in range(len(a))) / len(a)
        pictures.append(picture / np.linalg.norm(picture, axis=0))
    small = gelu(convolution(w["moments.downblocks.0.weight"], np.array(pictures)))
    return convolution(w["moments.downblocks.2.weight"], small).ravel()


def test_the_head_of_tokens_is_its_equations() -> None:
    """Heads of neighbouring channels; logits of the class token and of what is left."""
    head = randomised(TokenHead(TINY, 32))
    one, tokens = torch.randn(2, 32).double(), torch.randn(2, 9, 32).double()
    with torch.no_grad():
        found = head(one, tokens).numpy()
    w = weights(head)
    for row in range(2):
        u = linear(w, "proj", tokens[row].numpy())
        heads = [u[:, 16 * h : 16 * h + 16] for h in range(4)]
        both = np.concatenate((one[row].numpy(), moments(w, heads)))
        np.testing.assert_allclose(found[row], linear(w, "classifier", both), atol=1e-10)


def test_the_head_of_planes_takes_every_fourth_channel() -> None:
    """And the norm of the mean in the place of a class token."""
    head = randomised(PlaneHead(CONVNEXT, 16))
    x = torch.randn(2, 16, 3, 4).double()
    with torch.no_grad():
        found = head(x).numpy()
    w = weights(head)
    kernel = w["proj.weight"][:, :, 0, 0]
    for row, plane in enumerate(x.numpy().reshape(2, 16, 12)):
        u = (kernel @ plane).T + w["proj.bias"]
        one = layer_norm(w, "norm", plane.mean(1), 1e-6)
        both = np.concatenate((one, moments(w, [u[:, h::4] for h in range(4)])))
        np.testing.assert_allclose(found[row], linear(w, "classifier", both), atol=1e-10)


def recalibrated(w: dict[str, Array], x: Array, y: Array) -> Array:
    small = np.maximum(linear(w, "psrp.down", x), 0)
    scale = 1 + linear(w, "psrp.up_weight", small)
    return np.asarray(linear(w, "psrp.up_bias", small) + scale * y)


def mlp(w: dict[str, Array], x: Array) -> Array:
    return linear(w, "mlp.fc2", gelu(linear(w, "mlp.fc1", x)))


def attention(w: dict[str, Array], x: Array, heads: int, bias: Any) -> Array:
    """Pair by pair; `bias` gives what is added to a score, of head and both tokens."""
    q, k, v = (part.reshape(len(x), heads, -1) for part in np.split(linear(w, "attn.qkv", x), 3, 1))
    y = np.zeros_like(q)
    for h, i in np.ndindex(heads, len(x)):
        scores = [q[i, h] @ k[j, h] / q.shape[-1] ** 0.5 + bias(h, i, j) for j in range(len(x))]
        shares = np.exp(np.array(scores) - max(scores))
        y[i, h] = shares / shares.sum() @ v[:, h]
    return linear(w, "attn.proj", y.reshape(len(x), -1))


@pytest.mark.parametrize("shifted", [False, True])
def test_a_block_of_swin_attends_within_shifted_windows(*, shifted: bool) -> None:
    """Tokens of one window that were neighbours before the shift, with a bias by their offset."""
    side, window = 8, 4
    block = randomised(SwinBlock(6, side, 2, window, 3, shifted=shifted))
    x = torch.randn(2, side * side, 6).double()
    with torch.no_grad():
        found = block(x).numpy()
    w, shift = weights(block), window // 2 if shifted else 0

    def bias(head: int, i: int, j: int) -> float:
        (a, b), (c, d) = (divmod(n, side) for n in (i, j))
        places = [[(n - shift) % side for n in pair] for pair in ((a, b), (c, d))]
        if [n // window for n in places[0]] != [n // window for n in places[1]]:
            return -np.inf
        rows, columns = (places[0][axis] - places[1][axis] + window - 1 for axis in (0, 1))
        apart = abs(a - c) >= window or abs(b - d) >= window  # joined by the shift alone
        table = w["attn.relative_position_bias_table"]
        return float(table[rows * (2 * window - 1) + columns, head]) - 100 * apart

    for row in range(2):
        own = x[row].numpy()
        y = own + attention(w, layer_norm(w, "norm1", own, 1e-5), 2, bias)
        wanted = y + recalibrated(w, y, mlp(w, layer_norm(w, "norm2", y, 1e-5)))
        np.testing.assert_allclose(found[row], wanted, atol=1e-10)


def test_blocks_of_vit_and_convnext_are_their_equations() -> None:
    """ViT recalibrates by what enters the branch, ConvNeXt by what the branch gives."""
    vit = randomised(ViT(replace(TINY, hidden_size=6, depths=(1,), rank=3)))
    block = vit.blocks[0]
    assert isinstance(block, TransformerBlock)
    x = torch.randn(1, 5, 6).double()
    w, own = weights(block), x[0].numpy()
    y = own + attention(w, layer_norm(w, "norm1", own, 1e-6), 2, lambda *_: 0)
    wanted = y + recalibrated(w, y, mlp(w, layer_norm(w, "norm2", y, 1e-6)))
    with torch.no_grad():
        np.testing.assert_allclose(block(x)[0].numpy(), wanted, atol=1e-10)

    conv = randomised(ConvNeXtBlock(4, 3))
    w, image = weights(conv), torch.randn(1, 4, 3, 5).double()
    padded = np.pad(image.numpy()[0], ((0, 0), (3, 3), (3, 3)))
    branch = np.zeros((3, 5, 4))
    for r, c, channel in np.ndindex(branch.shape):
        part = padded[channel, r : r + 7, c : c + 7]
        branch[r, c, channel] = (part * w["conv_dw.weight"][channel, 0]).sum()
    branch = mlp(w, layer_norm(w, "norm", branch + w["conv_dw.bias"], 1e-6))
    wanted = image.numpy()[0] + (w["gamma"] * recalibrated(w, branch, branch)).transpose(2, 0, 1)
    with torch.no_grad():
        np.testing.assert_allclose(conv(image)[0].numpy(), wanted, atol=1e-10)


def test_four_tokens_merge_column_by_column() -> None:
    merging = randomised(Merging(3, 4))
    x = torch.randn(1, 16, 3).double()
    w, grid = weights(merging), x[0].numpy().reshape(4, 4, 3)
    wanted = []
    for r, c in np.ndindex(2, 2):
        four = [grid[2 * r + i, 2 * c + j] for j in (0, 1) for i in (0, 1)]
        wanted.append(linear(w, "reduction", layer_norm(w, "norm", np.concatenate(four), 1e-5)))
    with torch.no_grad():
        np.testing.assert_allclose(merging(x)[0].numpy(), wanted, atol=1e-10)


@pytest.mark.parametrize("config", KINDS, ids=lambda c: c.backbone)
def test_each_backbone_exports_with_one_classifier(config: Config, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module: OfTokens | OfPlanes = build(config).eval()
    given = inputs(config, 2, 1, torch.Generator().manual_seed(0))
    assert MOMENT_PROBING.axes is not None
    axes = MOMENT_PROBING.axes(config)
    report = export(module, tmp_path / "b", inputs=given, axes=axes, check_passes=True)

    assert report.parity is not None
    assert report.parity.passed
    graph = onnx.load(str(tmp_path / "b" / "model.onnx")).graph
    taking = [n for n in graph.node if "head.classifier.weight" in n.input]
    assert len(taking) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"backbone": "resnet"}, "backbone = 'resnet'; it should be one of: vit, swin, convnext"),
        ({"depths": (2, 2)}, r"depths = \[2, 2\]; a vit has one stage"),
        ({"heads": (2, 2)}, r"heads = \[2, 2\]; it should have an entry for each of 1 stages"),
        ({"image_size": 25}, "image_size = 25; it should be a multiple of 6"),
        ({"moment_heads": 3}, "moment_heads = 3; it should be 2 or more that 64 has"),
        ({"moment_size": 24}, "moment_size = 24; a head should have 7 channels at least"),
    ],
)
def test_sizes_that_do_not_fit_are_told(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        build(replace(TINY, **values))
    with pytest.raises(SourceError, match="window = 5; 16 patches a side do not fall into such"):
        build(replace(SWIN, window=5))


@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
def test_the_official_keys_are_those_of_the_module(name: str) -> None:
    """ViT-B/16, Swin-B and ConvNeXt-B with MP+, at full size."""
    keys = json.loads(
        (Path(__file__).parents[1] / f"data/keys/moment_probing_{name}.json").read_text()
    )
    shapes = {key: tuple(shape) for key, shape in keys["keys"].items()}
    assert TIMM.fits({}, shapes)
    config = MOMENT_PROBING.configure(TIMM.configure(keys["config"], shapes))
    with torch.device("meta"):
        module = build(config)
        found = TIMM.weights({n: torch.empty(shape) for n, shape in shapes.items()}, config)
    assert {n: x.shape for n, x in found.items()} == {
        n: x.shape for n, x in module.state_dict().items()
    }


def test_both_classifiers_are_one_of_half_their_sum() -> None:
    """(W1 one + b1 + W2 rest + b2) / 2."""
    torch.manual_seed(0)
    w1, b1, w2, b2 = (torch.randn(*shape) for shape in ((8, 32), (8,), (8, 27), (8,)))
    official = {
        "head.classifier1.weight": w1,
        "head.classifier1.bias": b1,
        "head.classifier2.weight": w2,
        "head.classifier2.bias": b2,
    }
    found = TIMM.weights(official, TINY)
    one, rest = torch.randn(32), torch.randn(27)
    both = found["head.classifier.weight"] @ torch.cat((one, rest)) + found["head.classifier.bias"]
    torch.testing.assert_close(both, (w1 @ one + b1 + w2 @ rest + b2) / 2)
