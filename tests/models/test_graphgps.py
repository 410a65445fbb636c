"""GraphGPS: its layers are the equations of the paper, and any graphs make one call."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from intaglio.errors import InputError, SourceError
from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.models.graphgps import GPS, GRAPHGPS, TINY, Config, GraphGPS, inputs
from intaglio.runtime import Session
from intaglio.runtime.graph_batches import join

Array = npt.NDArray[Any]
Weights = dict[str, Array]


def made(config: Config) -> GraphGPS:
    """A module whose batch norms are not the identity."""
    torch.manual_seed(0)
    module = GraphGPS(config).double().eval()
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    for name, weight in module.named_parameters():
        if "norm" in name or "bn_" in name:
            nn.init.uniform_(weight, 0.5, 1.5)
    return module


def linear(w: Weights, name: str, x: Array) -> Array:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", np.zeros(1))


def norm(w: Weights, name: str, x: Array) -> Array:
    scale = w[f"{name}.weight"] / np.sqrt(w[f"{name}.running_var"] + 1e-5)
    return (x - w[f"{name}.running_mean"]) * scale + w[f"{name}.bias"]


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def gine(w: Weights, x: Array, edges: Array, e: Array) -> tuple[Array, Array]:
    total = x.copy()
    for (j, i), feature in zip(edges.T, e, strict=True):
        total[i] += np.maximum(x[j] + feature, 0)
    return linear(w, "nn.2", np.maximum(linear(w, "nn.0", total), 0)), e


def gated_gcn(w: Weights, x: Array, edges: Array, e: Array) -> tuple[Array, Array]:
    top, below, new = np.zeros_like(x), np.zeros_like(x), e.copy()
    for index, (j, i) in enumerate(edges.T):
        gate = linear(w, "D", x[i]) + linear(w, "E", x[j]) + linear(w, "C", e[index])
        top[i] += sigmoid(gate) * linear(w, "B", x[j])
        below[i] += sigmoid(gate)
        new[index] += np.maximum(norm(w, "bn_edge_e", gate), 0)
    y = linear(w, "A", x) + top / (below + 1e-6)
    return np.maximum(norm(w, "bn_node_x", y), 0), new


def gat(w: Weights, x: Array, edges: Array, e: Array) -> tuple[Array, Array]:
    heads = w["att_src"].shape[1]
    y = np.zeros_like(x).reshape(len(x), heads, -1)
    h = linear(w, "lin_src", x).reshape(y.shape)
    for i in range(len(x)):
        into = [(j, e[n]) for n, (j, t) in enumerate(edges.T) if t == i and j != i]
        mean = np.mean([f for _, f in into], 0) if into else np.zeros(e.shape[1])
        into.append((i, mean))
        for head in range(heads):
            scores = []
            for j, feature in into:
                of_edge = linear(w, "lin_edge", feature).reshape(heads, -1)[head]
                score = h[j, head] @ w["att_src"][0, head] + h[i, head] @ w["att_dst"][0, head]
                score += of_edge @ w["att_edge"][0, head]
                scores.append(score if score > 0 else 0.2 * score)
            shares = np.exp(np.array(scores) - max(scores))
            for share, (j, _) in zip(shares / shares.sum(), into, strict=True):
                y[i, head] += share * h[j, head]
    return y.reshape(x.shape) + w["bias"], e


def softmax_attention(w: Weights, x: Array, heads: int) -> Array:
    packed = x @ w["in_proj_weight"].T + w["in_proj_bias"]
    q, k, v = (part.reshape(len(x), heads, -1) for part in np.split(packed, 3, 1))
    y = np.zeros_like(q)
    for h in range(heads):
        scores = np.exp(q[:, h] @ k[:, h].T / np.sqrt(q.shape[-1]))
        y[:, h] = scores / scores.sum(1, keepdims=True) @ v[:, h]
    return linear(w, "out_proj", y.reshape(len(x), -1))


def linear_attention(w: Weights, x: Array, heads: int) -> Array:
    q, k, v = (linear(w, f"to_{n}", x).reshape(len(x), heads, -1) for n in "qkv")
    matrix = w["fast_attention.projection_matrix"]
    y = np.zeros_like(q)
    for h in range(heads):
        dash = [part[:, h] * part.shape[-1] ** -0.25 for part in (q, k)]
        size = [(part**2).sum(1, keepdims=True) / 2 for part in dash]
        dash = [part @ matrix.T for part in dash]
        queries = np.exp(dash[0] - size[0] - dash[0].max(1, keepdims=True)) + 1e-4
        keys = np.exp(dash[1] - size[1] - dash[1].max()) + 1e-4
        for n in range(len(x)):
            shares = np.array([queries[n] @ key for key in keys])
            y[n, h] = shares @ v[:, h] / shares.sum()
    return linear(w, "to_out", y.reshape(len(x), -1))


LOCAL = {"gine": gine, "gated-gcn": gated_gcn, "gat": gat}
ATTENTION = {"softmax": softmax_attention, "linear": linear_attention}


def encode(w: Weights, config: Config, given: dict[str, Array]) -> Array:
    kinds = given["x"]
    if config.encoding == "none":
        return w["encoder.node_encoder.encoder.weight"][kinds]
    own = w["encoder.node_encoder.encoder1.encoder.weight"][kinds]
    part, name = given["encoding"], "encoder.node_encoder.encoder2"
    if config.encoding == "random-walk":
        return np.hstack((own, linear(w, f"{name}.pe_encoder", norm(w, f"{name}.raw_norm", part))))
    places = np.zeros((len(kinds), config.encoding_width))
    scale = w[f"{name}.raw_norm.weight"] / np.sqrt(w[f"{name}.raw_norm.running_var"] + 1e-5)
    for n, vectors in enumerate(part):
        for f, pair in enumerate(vectors):
            if not np.isnan(pair[0]):
                mean, bias = w[f"{name}.raw_norm.running_mean"][f], w[f"{name}.raw_norm.bias"][f]
                places[n] += np.maximum(
                    linear(w, f"{name}.linear_A", (pair - mean) * scale[f] + bias), 0
                )
    return np.hstack((own, places))


def by_equations(module: GraphGPS, config: Config, given: dict[str, Array]) -> Array:
    """The model, one graph after the other, in float64 and loops."""
    w = {name: value.double().numpy() for name, value in module.state_dict().items()}
    x, edges = encode(w, config, given), given["edge_index"]
    e = w["encoder.edge_encoder.encoder.weight"][given["edge_attr"]]
    for layer in range(config.num_layers):
        own = {
            n.removeprefix(f"layers.{layer}."): v
            for n, v in w.items()
            if n.startswith(f"layers.{layer}.")
        }
        local = {n.removeprefix("local_model."): v for n, v in own.items()}
        attention = {n.removeprefix("self_attn."): v for n, v in own.items()}
        y, e = LOCAL[config.local](local, x, edges, e)
        h = norm(own, "norm1_local", x + y)
        mixed = np.zeros_like(x)
        for graph in range(given["batch"].max() + 1):
            nodes = given["batch"] == graph
            mixed[nodes] = ATTENTION[config.attention](attention, x[nodes], config.num_heads)
        h = h + norm(own, "norm1_attn", x + mixed)
        x = norm(
            own, "norm2", h + linear(own, "ff_linear2", np.maximum(linear(own, "ff_linear1", h), 0))
        )
    rows = []
    for graph in range(given["batch"].max() + 1):
        nodes = x[given["batch"] == graph]
        y = nodes.sum(0) if config.pooling == "add" else nodes.mean(0)
        for index in range(3):
            y = linear(w, f"post_mp.FC_layers.{index}", y)
            y = np.maximum(y, 0) if index < 2 else y
        rows.append(y)
    return np.array(rows)


SMALL = replace(TINY, num_layers=2, hidden_size=8, num_heads=2, encoding_width=3, head_size=4)
KINDS = [
    SMALL,
    replace(SMALL, local="gated-gcn", attention="linear", encoding="laplacian", pooling="mean"),
    replace(SMALL, local="gat", encoding="none"),
]


@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.local}-{c.attention}")
def test_the_model_equals_the_equations(config: Config) -> None:
    """Messages edge by edge, attention node by node, one graph after the other."""
    module = made(config)
    given = inputs(config, 3, 5, torch.Generator().manual_seed(1))
    if config.encoding == "laplacian":
        given["encoding"][given["place"] > 2, 4:] = torch.nan
    with torch.no_grad():
        wide = {n: x.double() if x.is_floating_point() else x for n, x in given.items()}
        found = module(**wide).numpy()
    wanted = by_equations(module, config, {n: x.numpy() for n, x in wide.items()})
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphGPS, Session]:
    """A model with gated messages and both kinds of rows, as an engine."""
    module = made(SMALL).float()
    out = tmp_path_factory.mktemp("graphgps") / "bundle"
    given = inputs(SMALL, 3, 5, torch.Generator().manual_seed(0))
    report = export(module, out, inputs=given, axes=GRAPHGPS.axes(SMALL), check_passes=True)  # type: ignore[misc]
    assert report.parity is not None
    assert report.parity.passed
    return module, Session.load(out)


def one(nodes: int, edges: int, seed: int) -> dict[str, Array]:
    """A random graph."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.integers(0, 4, nodes),
        "edge_index": rng.integers(0, nodes, (2, edges)),
        "edge_attr": rng.integers(0, 2, edges),
        "encoding": rng.random((nodes, 8), np.float32),
    }


def test_graphs_of_any_size_in_one_call_are_those_of_calls_of_their_own(
    engine: tuple[GraphGPS, Session],
) -> None:
    """Without edges, with one node, with many edges from a node to itself."""
    module, session = engine
    graphs = [one(7, 20, 0), one(1, 0, 1), one(30, 0, 2), one(1, 6, 3), one(12, 40, 4)]
    together = session.step(join(graphs))["output"]
    for index, graph in enumerate(graphs):
        alone = join([graph])
        np.testing.assert_allclose(
            together[index : index + 1], session.step(alone)["output"], rtol=1e-4, atol=1e-4
        )
        with torch.no_grad():
            wanted = module(**{n: torch.from_numpy(x) for n, x in alone.items()}).numpy()
        np.testing.assert_allclose(together[index : index + 1], wanted, rtol=1e-4, atol=1e-4)


def test_the_order_of_nodes_and_edges_means_nothing(engine: tuple[GraphGPS, Session]) -> None:
    session = engine[1]
    graph, rng = one(20, 50, 5), np.random.default_rng(0)
    nodes, edges = rng.permutation(20), rng.permutation(50)
    place = np.argsort(nodes)
    other = {
        "x": graph["x"][nodes],
        "encoding": graph["encoding"][nodes],
        "edge_index": place[graph["edge_index"]][:, edges],
        "edge_attr": graph["edge_attr"][edges],
    }
    first, second = (session.step(join([each]))["output"] for each in (graph, other))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)


def test_edges_that_point_beyond_the_nodes_are_refused(engine: tuple[GraphGPS, Session]) -> None:
    """By the session, and before that where graphs are joined."""
    feeds = join([one(5, 9, 0)])
    feeds["edge_index"][1, 3] = 5
    with pytest.raises(InputError, match=r"'edge_index' has 5 at \[1, 3\]; it should be .* to 4"):
        engine[1].step(feeds)


def test_a_word_that_is_none_is_told() -> None:
    with pytest.raises(SourceError, match=r"local = 'gcn'; it should be one of: gine, gated-gcn"):
        GRAPHGPS.build(replace(TINY, local="gcn"))


def test_the_official_keys_are_those_of_the_module() -> None:
    """ZINC's config of GINE, attention and random walks, at full size."""
    keys = json.loads((Path(__file__).parents[1] / "data/keys/graphgps.json").read_text())
    shapes = {name: tuple(shape) for name, shape in keys["keys"].items()}
    assert GPS.fits({}, shapes)
    config = GRAPHGPS.configure(GPS.configure(keys["config"], shapes))
    assert config == Config()
    with torch.device("meta"):
        module = GraphGPS(config)
        found = GPS.weights({n: torch.empty(shape) for n, shape in shapes.items()}, config)
    assert {n: x.shape for n, x in found.items()} == {
        n: x.shape for n, x in module.state_dict().items()
    }


@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.local}-{c.attention}")
def test_official_checkpoints_are_read_by_their_shapes(config: Config, tmp_path: Path) -> None:
    """Whatever the parts are; what is missing and what is odd are named as the file names them."""
    module = made(config).float()
    state = {f"model.{name}": x for name, x in module.state_dict().items()}
    if config.local == "gat":
        for layer in range(config.num_layers):
            start = f"model.layers.{layer}.local_model.lin_"
            state[f"{start}dst.weight"] = state[f"{start}src.weight"]
    values = {"gt": {"n_heads": config.num_heads}, "model": {"graph_pooling": config.pooling}}
    torch.save({"model_state": state}, tmp_path / "ckpt")
    source = load_source(tmp_path / "ckpt", config=values, key="model_state")
    given = inputs(config, 2, 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(source.module(**given), module(**given))
    del state["model.post_mp.FC_layers.1.bias"]
    torch.save({"model_state": {**state, "model.odd": torch.ones(1)}}, tmp_path / "odd")
    with pytest.raises(SourceError, match=r"(?s)odd.*FC_layers\.1\.bias|FC_layers\.1\.bias.*odd"):
        load_source(tmp_path / "odd", config=values, key="model_state")
