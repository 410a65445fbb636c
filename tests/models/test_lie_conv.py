"""Lie group CNNs: kernels are those of the paper, and an engine has them as plain weights."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from intaglio.errors import SourceError
from intaglio.exporter.export import export
from intaglio.models.lie_conv import (
    LIE_CONV,
    RGENN,
    TINY,
    Config,
    GroupConvolution,
    LieConv,
    Lift,
    build,
    inputs,
)
from intaglio.runtime import Session

Array = npt.NDArray[Any]
SMALL = replace(
    TINY,
    samples=3,
    image_size=8,
    channels=2,
    kernel_size=3,
    kernel_width=5,
    head_width=4,
    alpha=1.5,
)
KINDS = [SMALL, replace(SMALL, group="gl", num_layers=1)]


def made(config: Config) -> LieConv:
    torch.manual_seed(0)
    return build(config).eval()


def sines(layer: GroupConvolution | Lift, x: Array) -> Array:
    """The network of a kernel at one point."""
    w = {name: value.numpy() for name, value in layer.inr.state_dict().items()}
    depth = len(layer.inr.kernel_net.net)
    for i in range(depth):
        x = w[f"kernel_net.net.{i}.linear.weight"] @ x + w[f"kernel_net.net.{i}.linear.bias"]
        x = np.sin(10 * x)
    return np.asarray(w["final_linear.weight"] @ x + w["final_linear.bias"])


def logarithm(g: Array, config: Config) -> Array:
    """Log P + log R by singular values, in an orthonormal basis of the algebra."""
    u, sizes, v = np.linalg.svd(g)
    log_p, turn = u @ np.diag(np.log(sizes)) @ u.T, u @ v
    angle = math.atan2(turn[1, 0], turn[0, 0]) % (2 * math.pi)
    a = config.alpha
    off = math.sqrt(2 * a)
    if config.group == "sl":
        return np.array([log_p[0, 1] * off, angle, log_p[0, 0] * off])
    return np.array([log_p[0, 0] * a**0.5, log_p[0, 1] * off, log_p[1, 1] * a**0.5, angle])


def entry(layer: GroupConvolution | Lift, g: int, h: int | None, row: int, column: int) -> Array:
    """The kernel from sample h to sample g at one place [given, taken], and its window."""
    config, k = layer.config, layer.config.kernel_size
    inverse = layer.g_inv.numpy()
    u = layer.grid.numpy()[:, column, row]
    np.testing.assert_allclose(u, [(2 * column + 1) / k - 1, (2 * row + 1) / k - 1], atol=1e-6)
    x = inverse[g] @ u
    where = x
    if h is not None:
        where = np.concatenate((x, logarithm(inverse[g] @ layer.g_tilde.numpy()[h], config)))
    value = sines(layer, where).reshape(layer.given, layer.taken)
    if config.group == "sl":
        return value * (np.linalg.norm(x) <= 1)
    value = value / (1 + np.exp(-2 * (1 - np.linalg.norm(where))))
    # The samples of the input should divide; the released code has those of the output do so.
    volume = abs(np.linalg.det(inverse[g])) if h is None else abs(np.linalg.det(layer.g_tilde[g]))
    return np.asarray(value * volume if h is None else value / volume)


@pytest.mark.parametrize("config", KINDS, ids=lambda c: c.group)
def test_layers_are_sums_over_samples_and_places(config: Config) -> None:
    """(k * f)(g, x) = sum over h, u of k(g^-1 u, log(g^-1 h)) f(h, x + u), entry by entry."""
    module = made(config).double()
    k = config.kernel_size
    image = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    lift = module.stem[0]
    assert isinstance(lift, Lift)
    with torch.no_grad():
        found = lift(image)[0].numpy()
    wanted = np.zeros_like(found)
    for g, row, column in np.ndindex(config.samples, k, k):
        value = entry(lift, g, None, row, column)
        part = image.numpy()[0, :, row : row + 3, column : column + 3]
        wanted[:, g] += np.einsum("oi,ihw->ohw", value, part)
    np.testing.assert_allclose(found, wanted, atol=1e-10)

    layer = module.blocks[-3]
    assert isinstance(layer, GroupConvolution)
    x = torch.randn(1, 2, config.samples, 4, 4, dtype=torch.float64)
    padded = np.pad(x.numpy()[0], ((0, 0), (0, 0), (1, 1), (1, 1)))
    with torch.no_grad():
        found = layer(x)[0].numpy()
    wanted = np.zeros_like(found)
    for g, h, row, column in np.ndindex(config.samples, config.samples, k, k):
        value = entry(layer, g, h, row, column)
        wanted[:, g] += np.einsum(
            "oi,ihw->ohw", value, padded[:, h, row : row + 4, column : column + 4]
        )
    np.testing.assert_allclose(found, wanted, atol=1e-10)


@pytest.mark.parametrize("group", ["sl", "gl"])
def test_samples_and_inverses_belong_to_each_other(group: str) -> None:
    """Of determinant 1 in SL, positive in GL, with symmetric parts and rotations."""
    module = made(replace(SMALL, group=group, samples=5))
    lift, first = (
        module.stem[0],
        next(m for m in module.modules() if isinstance(m, GroupConvolution)),
    )
    assert isinstance(lift, Lift)
    torch.testing.assert_close(first.g_tilde @ lift.g_inv, torch.eye(2).expand(5, 2, 2))
    sizes = torch.det(first.g_tilde)
    assert torch.allclose(sizes, torch.ones(5), atol=1e-5) == (group == "sl")
    assert (sizes > 0).all()


def test_quarter_turns_of_a_picture_change_nothing_where_the_samples_are_these() -> None:
    """With four rotations as samples, what is pooled over the group is invariant."""
    module = made(replace(SMALL, samples=4))
    angles = torch.arange(4) * math.pi / 2
    turn = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1).view(4, 2, 2)
    for layer in module.modules():
        if isinstance(layer, GroupConvolution | Lift):
            layer.g_tilde.copy_(turn)
            layer.g_inv.copy_(turn.transpose(-1, -2))
    image = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        plain, turned = module(image), module(image.rot90(1, (-2, -1)))
        module.sample()
        torch.testing.assert_close(plain, turned, atol=1e-5, rtol=0)
        assert (module(image) - module(image.rot90(1, (-2, -1)))).abs().max() > 1e-3


@pytest.mark.parametrize("config", KINDS, ids=lambda c: c.group)
def test_an_engine_has_the_kernels_as_plain_weights(config: Config, tmp_path: Any) -> None:
    """No network, no eigenvectors: what precedes a convolution is its weight."""
    module = made(config)
    given = inputs(config, 2, 1, torch.Generator().manual_seed(0))
    assert LIE_CONV.axes is not None
    report = export(
        module, tmp_path / "b", inputs=given, axes=LIE_CONV.axes(config), check_passes=True
    )

    assert report.parity is not None
    assert report.parity.passed
    graph = onnx.load(str(tmp_path / "b" / "model.onnx")).graph
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    layers = [m for m in module.modules() if isinstance(m, GroupConvolution | Lift)]
    assert not {"Sin", "Einsum", "Log", "Atan"} & {node.op_type for node in graph.node}
    assert len(convolutions) == len(layers)
    for node, layer in zip(convolutions, layers, strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(weights[node.input[1]], layer.kernel().numpy(), atol=1e-5)
    session = Session.load(tmp_path / "b")
    image = given["image"].numpy()
    first, second = (session.step({"image": image})["output"] for _ in range(2))
    assert np.array_equal(first, second)  # the samples are those of the source


def test_a_group_that_is_none_is_told() -> None:
    with pytest.raises(SourceError, match="group = 'so'; it should be one of: gl, sl"):
        build(replace(TINY, group="so"))


def test_the_official_keys_are_those_of_the_module() -> None:
    """Defaults of the released training script; what says the group is held to the config."""
    keys = json.loads((Path(__file__).parents[1] / "data/keys/lie_conv.json").read_text())
    shapes = {name: tuple(shape) for name, shape in keys["keys"].items()}
    assert RGENN.fits({}, shapes)
    config = LIE_CONV.configure(RGENN.configure(keys["config"], shapes))
    assert config == Config()
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for name in tensors:
        if name.endswith("orthogonal.basis_matrix"):
            tensors[name] = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]) / math.sqrt(2)
    with torch.device("meta"):
        module = LieConv(config)
    found = RGENN.weights(tensors, config)
    assert {n: x.shape for n, x in found.items()} == {
        n: x.shape for n, x in module.state_dict().items()
    }
    with pytest.raises(SourceError, match="is of metric_alpha = 1, not 2"):
        RGENN.weights(tensors, replace(config, alpha=2.0))
    wide = {**shapes, "model.blocks.0.conv1.inr.kernel_net.net.0.linear.weight": (60, 9)}
    with pytest.raises(SourceError, match="takes 9 coordinates, which no group here has"):
        RGENN.configure({}, wide)
