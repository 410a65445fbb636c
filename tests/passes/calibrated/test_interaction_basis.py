"""Layers in the interaction basis: by its equations, lossless where nothing counts, verified."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

import intaglio
from intaglio.errors import PassError
from intaglio.exporter.sources.calibration_data import read_calibration
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import trace
from intaglio.models.llama import Config, build
from intaglio.passes import pipeline
from intaglio.passes.base import Context, PassResult
from intaglio.passes.calibrated._global_derivatives import derivative_moments
from intaglio.passes.calibrated._interaction import interaction_basis, output_metric
from intaglio.passes.calibrated._junctions import RULES, junctions
from intaglio.passes.calibrated.interaction_basis import InteractionBasis
from intaglio.passes.calibrated.modegpt import Modegpt

Array = npt.NDArray[Any]


class Perceptron(nn.Module):
    """A hidden layer, and three linear ones in a row behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 40)
        self.narrow = nn.Linear(40, 16)
        self.wide = nn.Linear(16, 24, bias=False)
        self.last = nn.Linear(24, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.wide(self.narrow(self.up(x).relu())))
        return y


def perceptron() -> Perceptron:
    """Ten hidden units, each four times."""
    torch.manual_seed(0)
    module = Perceptron().eval()
    with torch.no_grad():
        module.up.weight.copy_(module.up.weight[:10].repeat(4, 1))
        module.up.bias.copy_(module.up.bias[:10].repeat(4))
    return module


def vectors(count: int = 256) -> Array:
    return np.random.default_rng(1).normal(size=(count, 12)).astype(np.float32)


CALL: dict[str, Any] = {
    "inputs": {"x": torch.zeros(3, 12)},
    "axes": {"x": "batchx12"},
}


@cache
def traced(name: str) -> tuple[Source, ir.Model]:
    module = decoder() if name == "decoder" else perceptron()
    call = TOKENS if name == "decoder" else CALL
    source = load_source(module, **call)
    found = trace(source).model
    pipeline.run(found, pipeline.tidy(), Context())
    return source, found


def decoder() -> nn.Module:
    torch.manual_seed(0)
    config = Config(hidden_size=32, intermediate_size=40, num_layers=1, vocab_size=64)
    module = build(config)
    for parameter in module.parameters():
        if parameter.ndim == 2:
            parameter.data *= 8
    return module.eval()


TOKENS: dict[str, Any] = {"inputs": {"input_ids": torch.arange(8)[None]}}


def ids() -> dict[str, Any]:
    return {"input_ids": np.random.default_rng(0).integers(0, 64, (24, 16))}


def changed(name: str, **options: Any) -> tuple[ir.Model, PassResult]:
    source, found = traced(name)
    model = found.clone()
    data = ids() if name == "decoder" else {"x": vectors()}
    context = Context(calibration=read_calibration(data, source))
    return model, InteractionBasis(**options).run(model, context)


def test_moments_give_the_mean_of_jacobians() -> None:
    """A gated feed-forward, token by token: J = diag(silu'(g) u) W_g + diag(silu(g)) W_u."""
    module, (_, graph) = decoder(), traced("decoder")
    found = {j.readers[0].path: j for j in junctions(graph.graph)}
    junction = found["layers.0.mlp.gate_proj"]
    (between,) = junction.between
    weights = {
        p.path: dict(module.named_parameters())[p.weight.name or ""] for p in between.readers
    }
    gate, up = (weights[f"layers.0.mlp.{n}_proj"].detach().double().numpy() for n in ("gate", "up"))
    random = np.random.default_rng(2)
    x, half = random.normal(size=(50, 32)) / 32, random.normal(size=(40, 40))
    metric, total = half @ half.T, np.zeros((32, 32))
    for row in x:
        g, u = gate @ row, up @ row
        s = 1 / (1 + np.exp(-g))
        jacobian = (s * (1 + g * (1 - s)) * u)[:, None] * gate + (g * s)[:, None] * up
        total += jacobian.T @ metric @ jacobian / len(x)
    d = between.derivatives(x)

    held = np.concatenate([weights[p.path].detach().double().numpy() for p in between.readers])
    found_metric = output_metric(metric, d.T @ d / len(x))
    np.testing.assert_allclose(held.T @ found_metric @ held, total, rtol=1e-9)
    assert not junction.ends
    assert len(found["layers.0.mixer.q_proj"].ends) == 3


class Sine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin()


class Later(nn.Module):
    """One number for each token, of all so far: V tanh(W x) summed over time, squared."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.first(x).tanh().cumsum(1)).square()
        return y


def test_global_derivatives_are_those_of_all_later_outputs() -> None:
    """The mean over tokens of J^T J, padding left out, by what a projection yields."""
    torch.manual_seed(0)
    module = Later().eval()
    x = np.random.default_rng(0).normal(size=(16, 3, 5)).astype(np.float32)
    lengths = np.array([3, 2] * 8)
    source = load_source(module, inputs={"x": torch.zeros(1, 4, 5)}, axes={"x": "batchxtimex5"})
    model = trace(source).model
    pipeline.run(model, pipeline.tidy(), Context())
    data = read_calibration({"x": x, "lengths": lengths}, source)
    found = [j for j in junctions(model.graph) if j.readers[0].path == "first"]
    context = Context(calibration=data, module=source.module)
    (moment,) = derivative_moments(model, found, context, 300, "me").values()

    def of_z(z: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = module.last(z.tanh().cumsum(0)).square()[:, 0]
        return y

    total, tokens = torch.zeros(4, 4), 0
    rows = [r for index in data.fitted for r in _rows_of(data, index)]
    for row, length in rows:
        jacobian = torch.func.jacrev(of_z)(module.first(row[:length]).detach())
        total += torch.einsum("otn,otm->nm", jacobian, jacobian).detach()
        tokens += length
    np.testing.assert_allclose(moment, total / tokens, atol=0.1 * float(total.max()) / tokens)


def _rows_of(data: Any, index: int) -> list[tuple[torch.Tensor, int]]:
    batch = data.batches[index]
    rows = torch.from_numpy(batch.inputs["x"])
    return list(zip(rows, [int(n) for n in batch.lengths], strict=True))


def test_the_global_form_keeps_what_no_output_follows_from() -> None:
    """The head reads 3 of 8 sines, for which the local form has no rule."""
    torch.manual_seed(0)
    last = nn.Linear(8, 4, bias=False)
    module = nn.Sequential(nn.Linear(12, 8), Sine(), last).eval()
    with torch.no_grad():
        last.weight[:, 3:] = 0
    call: Any = {"inputs": {"input": torch.zeros(3, 12)}, "axes": {"input": "batchx12"}}
    source = load_source(module, **call)
    model = trace(source).model
    pipeline.run(model, pipeline.tidy(), Context())
    data = read_calibration({"input": vectors()}, source)
    counts = []
    for form in ("local", "global"):
        context = Context(calibration=data, module=source.module)
        asked: Any = {"tail": 0.0, "form": form, "head": True, "layers": ["0"]}
        step = InteractionBasis(**asked)
        (layer,) = step.run(model.clone(), context).details["layers"]
        counts.append((layer["directions"][1], layer["effective"]))
    assert counts == [(8, [96, 96]), (3, [96, 36])]
    with pytest.raises(PassError, match=r"no PyTorch module.*form='local'"):
        InteractionBasis(form="global", head=True).run(model.clone(), Context(calibration=data))


def test_bases_are_what_their_coordinates_say() -> None:
    """Grams are Lam and I in them; all of them change nothing; those that go are the error."""
    random = np.random.default_rng(3)
    x = random.normal(size=(200, 9)) @ random.normal(size=(9, 14))
    weight = random.normal(size=(6, 14))
    gram, jacobian = x.T @ x / len(x), weight.T @ weight
    basis = interaction_basis(gram, jacobian, 1e-10)

    assert basis.span == 9
    assert basis.C.shape == (14, 6)
    np.testing.assert_allclose(basis.C.T @ gram @ basis.C, np.diag(basis.spectrum), atol=1e-7)
    np.testing.assert_allclose(basis.inverse @ jacobian @ basis.inverse.T, np.eye(6), atol=1e-9)
    own = np.sort(np.linalg.eigvals(gram @ jacobian).real)[::-1][:6]
    np.testing.assert_allclose(basis.spectrum, own, rtol=1e-9)
    for kept in range(7):
        made = x @ basis.C[:, :kept] @ (basis.inverse[:kept] @ weight.T)
        error = np.square(made - x @ weight.T).sum() / len(x)
        np.testing.assert_allclose(error, basis.spectrum[kept:].sum(), rtol=1e-7, atol=1e-9)


WITH_ATTRIBUTES = (
    'Gelu <approximate="tanh">',
    "Elu <alpha=0.5>",
    "LeakyRelu <alpha=0.2>",
    "Swish <alpha=1.5>",
)


@pytest.mark.parametrize("op", [*sorted(RULES), *WITH_ATTRIBUTES])
def test_derivatives_are_those_of_the_operator(op: str) -> None:
    """Of every operator that may stand between, by differences of what the standard says.

    Its reference computes some in float32, hence the size of the step.
    """
    random = np.random.default_rng(4)
    weight = random.uniform(0.2, 1.0, (4, 4))
    operands = "z, z" if op in ("Add", "Sub", "Mul", "Div", "Pow") else "z"
    model = onnx.parser.parse_model(
        f"""<ir_version: 11, opset_import: ["" : 24]>
        g (double[n, 4] x) => (double[n, 4] y) {{
            z = MatMul(x, w)
            h = {op}({operands})
            y = MatMul(h, v)
        }}"""
    )
    for name, array in (("w", weight.T.copy()), ("v", np.eye(4))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    made = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))
    (between,) = junctions(made.graph)[0].between
    x = random.uniform(0.1 if op == "Pow" else -1.0, 1.0, (16, 4))
    reference = ReferenceEvaluator(model)
    step = 1e-3 * np.linalg.solve(weight, np.ones(4))  # moves every entry of z by 1e-3

    moved: list[Any] = [reference.run(["y"], {"x": each}) for each in (x + step, x - step)]
    (after,), (before,) = moved
    np.testing.assert_allclose(between.derivatives(x), (after - before) / 2e-3, atol=1e-4)


def test_what_counts_for_nothing_goes_without_a_trace(tmp_path: Path) -> None:
    """Of 40 units ten differ; the layer behind yields eleven directions, its bias one of them."""
    report = intaglio.export(
        perceptron(),
        tmp_path / "bundle",
        passes=["interaction-basis:tail=0"],
        calib={"x": vectors()},
        **CALL,
    )
    parity = report.parity
    assert parity is not None
    assert parity.passed
    assert parity.against.endswith("compressed")
    assert (parity.quantization or {})["output"] < 1e-5


def test_directions_and_parameters_are_told() -> None:
    model, result = changed("perceptron", tail=0)
    found = {layer["path"]: layer for layer in result.details["layers"]}

    assert {p: layer["directions"] for p, layer in found.items()} == {
        "up": [12, 10, 0],
        "narrow": [40, 10, 10],
        "wide": [16, 11, 11],
        "last": [24, 11, 11],
    }
    assert found["wide"]["into"] == "narrow"
    assert "no smaller" in result.details["left"]["up"]
    assert {p: layer["effective"] for p, layer in found.items()} == {
        "up": [480, 12 * 10],
        "narrow": [640, 10 * 11],
        "wide": [384, 11 * 11],
        "last": [576, 11 * 24],
    }
    assert result.details["parameters"] == [
        480 + 640 + 384 + 576,
        480 + 10 * (40 + 11) + 11 * 11 + 11 * 24,
    ]
    assert sum(node.op_type == "MatMul" for node in model.graph) == 2
    assert result.details["stages"][1]["error"] < 1e-10


def test_fewer_directions_of_a_transformer_are_verified(tmp_path: Path) -> None:
    """Gate and up read the same ones; the error of the engine is apart from that of the basis."""
    report = intaglio.export(
        decoder(),
        tmp_path / "bundle",
        passes=["interaction-basis:ratio=0.2,layers=['*mlp*']"],
        calib=ids(),
        kv="grow",
        **TOKENS,
    )
    parity = report.parity
    assert parity is not None
    assert parity.passed
    assert parity.against.endswith("compressed")
    assert (parity.quantization or {})["logits"] > 1e-3


def test_the_directions_that_count_less_go() -> None:
    """The more goes, the larger the tail; as many by number as by ratio are the same."""
    few, many = (changed("decoder", ratio=r)[1].details for r in (0.6, 0.2))
    for a, b in zip(few["layers"], many["layers"], strict=True):
        assert a["tail"] > b["tail"] >= 0
    first = "layers.0.mlp.gate_proj"
    kept = next(layer["directions"][2] for layer in few["layers"] if layer["path"] == first)
    assert kept == int(0.4 * 32 * 80 / (32 + 80))
    by_rank = changed("decoder", ranks={"*gate_proj": kept}, layers=["*gate_proj", "*up_proj"])[1]
    assert by_rank.details["layers"][0]["directions"] == [32, 32, kept]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(PassError, match=r"leaves none\. At most"):
        changed("decoder", ratio=0.99)
    with pytest.raises(PassError, match=r"ratio = 1\.0 should be above 0 and below 1"):
        changed("decoder", ratio=1.0)
    with pytest.raises(PassError, match=r"tail = 1\.0 should be at least 0"):
        changed("decoder", tail=1.0)
    with pytest.raises(PassError, match="found no layer"):
        changed("decoder", layers=["nowhere"])
    with pytest.raises(PassError, match="needs data"):
        InteractionBasis().run(traced("perceptron")[1].clone(), Context())


def test_derivatives_of_another_model_are_not_taken() -> None:
    """After a pass that changed weights the source's module is not what the graph computes."""
    source, found = traced("decoder")
    model = found.clone()
    context = Context(calibration=read_calibration(ids(), source), module=source.module)
    Modegpt(by="magnitude", modules=["mlp"]).run(model, context)
    with pytest.raises(PassError, match=r"those of another model\. Put --pass interaction-basis f"):
        InteractionBasis(form="global", layers=["*gate_proj"]).run(model, context)


def rib_results(path: Path, node: str, *, turned: bool) -> tuple[Array, Array]:
    """A file in the form of rib, of 12 entries and a folded bias: 6 directions at a node."""
    random = np.random.default_rng(5)
    forth = random.normal(size=(13, 6))
    back = np.linalg.pinv(forth)
    rotation = {
        "node_layer": node,
        "orig_dim": 13,
        "C": torch.from_numpy(forth.T if turned else forth),
        "C_pinv": torch.from_numpy(back),
        "Lambda": torch.linspace(1, 0.1, 13, dtype=torch.float64),
        **dict.fromkeys(("W", "W_pinv", "V")),
    }
    last = {**dict.fromkeys(rotation), "node_layer": "output", "orig_dim": 24}
    config = {"out_dir": Path("out"), "dtype": "float64"}
    held = {"exp_name": "e", "interaction_rotations": [rotation, last], "config": config}
    torch.save(held, path)
    return forth, back


def test_the_bases_of_a_results_file_are_taken(tmp_path: Path) -> None:
    """What it says of [x, 1], 4 directions of it; the bias follows, and all is verified."""
    forth, back = rib_results(tmp_path / "rib.pt", "up", turned=False)
    made, found = changed("perceptron", rib=str(tmp_path / "rib.pt"), rank=4)
    (layer,) = found.details["layers"]
    assert layer["directions"] == [12, 6, 4]
    x, up = vectors(5).astype(np.float64), perceptron().up
    behind = torch.cat((up.weight, up.bias[:, None]), 1).detach().numpy()
    wanted = np.pad(x, ((0, 0), (0, 1)), constant_values=1) @ forth[:, :4] @ back[:4] @ behind.T
    held = {n: v.const_value.numpy() for n, v in made.graph.initializers.items() if v.const_value}
    first, second = held["up.first.weight"], held["up.second.weight"]
    np.testing.assert_allclose(x @ first.T @ second.T + held["up.bias"], wanted, atol=1e-4)
    report = intaglio.export(
        perceptron(),
        tmp_path / "bundle",
        passes=[f"interaction-basis:rib='{tmp_path / 'rib.pt'}',rank=4"],
        calib={"x": vectors()},
        **CALL,
    )
    assert report.parity is not None
    assert report.parity.passed


def test_a_results_file_that_does_not_fit_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rib.pt"
    rib_results(path, "mlp_in.0", turned=False)
    with pytest.raises(PassError, match=r"no layer is at a node of .*\(mlp_in\.0\)"):
        changed("perceptron", rib=str(path))
    _, found = changed("perceptron", rib=str(path), rank=4, nodes={"mlp_in.0": "up"})
    assert [layer["path"] for layer in found.details["layers"]] == ["up"]
    rib_results(path, "up", turned=True)
    with pytest.raises(PassError, match=r"has C \[6, 13\] .* 12 entries are read there"):
        changed("perceptron", rib=str(path))
    torch.save({"interaction_rotations": []}, path)
    with pytest.raises(PassError, match="no interaction_rotations with C and C_pinv"):
        changed("perceptron", rib=str(path))
    path.write_bytes(b"no")
    with pytest.raises(PassError, match="cannot be read as results of rib"):
        changed("perceptron", rib=str(path))
