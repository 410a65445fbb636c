"""Mamba and Mamba-2: the equations of their papers, the library's files, an engine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recurrences import Array, Weights, convolved, linear, rms, silu, softplus, weights_of
from safetensors.torch import save_file
from torch import nn

from intaglio.errors import SourceError
from intaglio.exporter.export import ExportReport, export
from intaglio.exporter.sources.load import load_source
from intaglio.models import Model, find
from intaglio.models.mamba import Config, build
from intaglio.runtime import Session

DATA = Path(__file__).parents[1] / "data" / "keys"
MODEL: Model = find("mamba")
LAYOUT, FLA = MODEL.layouts
KEYS = {kind: json.loads((DATA / f"{kind}.json").read_text()) for kind in ("mamba", "mamba2")}
FIRST = Config(
    kind="mamba",
    vocab_size=24,
    hidden_size=12,
    inner_size=24,
    num_layers=1,
    state_size=5,
    conv_size=3,
    step_rank=4,
)
SECOND = Config(
    vocab_size=24,
    hidden_size=12,
    inner_size=24,
    num_layers=1,
    state_size=5,
    conv_size=3,
    head_size=6,
    groups=2,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def shaken(config: Config) -> nn.Module:
    """A model in which every parameter counts."""
    torch.manual_seed(1)
    module = build(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def first(w: Weights, u: Array) -> Array:
    """Mamba's mixer: a state of each channel by itself."""
    x, z = np.split(linear(w, "in_proj", u), 2, -1)
    x = silu(convolved(w, "conv1d", x) + w["conv1d.bias"])
    r, b, c = np.split(linear(w, "x_proj", x), [4, 9], -1)
    step = softplus(linear(w, "dt_proj", r))
    state, rows = np.zeros((24, 5)), []
    for t in range(len(u)):
        decay = np.exp(-np.exp(w["A_log"]) * step[t][:, None])
        state = decay * state + (step[t] * x[t])[:, None] * b[t]
        rows.append(state @ c[t] + w["D"] * x[t])
    return linear(w, "out_proj", np.stack(rows) * silu(z))


def second(w: Weights, u: Array) -> Array:
    """Mamba-2's: four heads of six, two for each B and C; a norm of each half."""
    z, mixed, d = np.split(linear(w, "in_proj", u), [24, 68], -1)
    x, b, c = np.split(silu(convolved(w, "conv1d", mixed) + w["conv1d.bias"]), [24, 34], -1)
    step = softplus(d + w["dt_bias"])
    x, b, c = x.reshape(-1, 4, 6), b.reshape(-1, 2, 5), c.reshape(-1, 2, 5)
    state, rows = np.zeros((4, 5, 6)), []
    for t in range(len(u)):
        decay, y = np.exp(-np.exp(w["A_log"]) * step[t]), []
        for head in range(4):
            write = np.outer(b[t, head // 2], step[t, head] * x[t, head])
            state[head] = decay[head] * state[head] + write
            y.append(c[t, head // 2] @ state[head] + w["D"][head] * x[t, head])
        gated = (np.concatenate(y) * silu(z[t])).reshape(2, 12)
        rows.append(rms(gated, w["norm.weight"].reshape(2, 12), 1e-5).reshape(-1))
    return linear(w, "out_proj", np.stack(rows))


@pytest.mark.parametrize(
    ("config", "mixer"), [(FIRST, first), (SECOND, second)], ids=["mamba", "mamba2"]
)
def test_the_model_is_the_recurrence_of_the_paper(config: Config, mixer: Any) -> None:
    """Token by token in NumPy, with the layer around it and tied logits."""
    module = shaken(config).double()
    w = weights_of(module)
    ids = np.random.default_rng(0).integers(24, size=30)
    start = "backbone.layers.0."
    own = {n.removeprefix(f"{start}mixer."): x for n, x in w.items()}
    x = w["backbone.embedding.weight"][ids]
    x = x + mixer(own, rms(x, w[f"{start}norm.weight"], 1e-5))
    wanted = rms(x, w["backbone.norm_f.weight"], 1e-5) @ w["backbone.embedding.weight"].T

    with torch.no_grad():
        found = module(torch.from_numpy(ids)[None])[0].numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_official_names_and_shapes_at_full_size_fit(kind: str) -> None:
    """130 million parameters; a vocabulary that is filled up to a multiple of 8 and of 16."""
    values, shapes = KEYS[kind]["config"], KEYS[kind]["keys"]
    fitting = [m.name for m in [MODEL] for each in m.layouts if each.fits(values, shapes)]
    config = MODEL.configure(LAYOUT.configure(values, shapes))
    with torch.device("meta"):
        module = build(config)
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    found = LAYOUT.weights(tensors, config)

    assert fitting == ["mamba"]
    assert {n: tuple(t.shape) for n, t in found.items()} == {
        n: tuple(t.shape) for n, t in module.state_dict().items()
    }
    assert {id(t) for t in found.values()} == {id(t) for t in tensors.values()}
    assert (config.kind, config.num_layers, config.inner_size) == (kind, 24, 1536)

    renamed = {n.replace("embedding.", "embeddings."): x for n, x in tensors.items()}
    same = FLA.configure(of_fla(config), {})
    assert MODEL.configure(same) == config
    assert FLA.weights(renamed, config).keys() == found.keys()


def test_the_librarys_own_mamba_is_left_to_it() -> None:
    """Directories of transformers name themselves, and their embeddings otherwise."""
    keys = KEYS["mamba"]["keys"]
    assert not LAYOUT.fits({"model_type": "mamba"}, keys)
    assert not LAYOUT.fits({"model_type": "mamba", "ssm_cfg": {}, "hidden_size": 768}, keys)
    assert LAYOUT.fits({"model_type": "mamba", "ssm_cfg": {}, "d_model": 768}, keys)
    assert not LAYOUT.fits({}, {"backbone.embeddings.weight", "backbone.layers.0.mixer.A_log"})


def directory(folder: Path, config: Config, own: dict[str, Any]) -> Path:
    """As the library's `save_pretrained` leaves it."""
    folder.mkdir()
    torch.save(shaken(config).state_dict(), folder / "pytorch_model.bin")
    values = {"d_model": 12, "n_layer": 1, "vocab_size": 21, "ssm_cfg": own, "rms_norm": True}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """A directory of Mamba-2, verified."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("mamba")
    own = {"layer": "Mamba2", "d_state": 5, "ngroups": 2, "headdim": 6, "d_conv": 3}
    return export(directory(folder / "saved", SECOND, own), folder / "bundle", steps=40)


def test_the_step_engine_carries_a_state_for_each_head(exported: ExportReport) -> None:
    """And the last two inputs of the convolution."""
    assert exported.parity is not None
    assert exported.parity.passed
    shapes = sorted(state.shape[1:] for state in exported.manifest.main.states)
    assert shapes == [(4, 5, 6), (44, 2)]
    tokens = np.random.default_rng(0).integers(24, size=(2, 12))
    whole, parted = Session.load(exported.out), Session.load(exported.out)
    expected = whole.step({"input_ids": tokens})["logits"]
    pieces = [parted.step({"input_ids": tokens[:, t : t + 4]})["logits"] for t in (0, 4, 8)]
    np.testing.assert_allclose(np.concatenate(pieces, 1), expected, atol=2e-5)


def of_fla(config: Config) -> dict[str, Any]:
    """The config.json of that library for a model of these sizes."""
    shared = {
        "model_type": config.kind,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "state_size": config.state_size,
        "conv_kernel": config.conv_size,
        "expand": config.inner_size // config.hidden_size,
        "norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "residual_in_fp32": True,
        "fuse_norm": True,
    }
    if config.kind == "mamba":
        return {**shared, "dt_rank": config.step_rank, "intermediate_size": config.inner_size}
    heads = config.inner_size // config.head_size
    sizes = {"head_dim": config.head_size, "num_heads": heads, "n_groups": config.groups}
    return {**shared, **sizes, "dt_limit": [0.0, float("inf")], "norm_before_gate": False}


@pytest.mark.parametrize("config", [FIRST, SECOND], ids=["mamba", "mamba2"])
def test_directories_of_flash_linear_attention_are_read(config: Config, tmp_path: Path) -> None:
    """Read by transformers they would lose the epsilon and the groups of their norms."""
    config = replace(config, norm_eps=1e-2, tie_embeddings=False)
    module = shaken(config)
    theirs = {n.replace("embedding.", "embeddings."): x for n, x in module.state_dict().items()}
    save_file(theirs, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(of_fla(config)))

    source = load_source(tmp_path)

    assert source.model == "mamba"
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(source.module(ids), module(ids), atol=0, rtol=0)


@pytest.mark.parametrize("end", [float("inf"), {"__float__": "Infinity"}], ids=["JSON", "words"])
def test_limits_without_an_end_are_kept_in_the_manifest(end: Any, tmp_path: Path) -> None:
    """In the words of transformers, since JSON has none."""
    config = replace(SECOND, norm_eps=1e-2, tie_embeddings=False)
    module = shaken(config)
    theirs = {n.replace("embedding.", "embeddings."): x for n, x in module.state_dict().items()}
    (tmp_path / "source").mkdir()
    save_file(theirs, tmp_path / "source" / "model.safetensors")
    said = {**of_fla(config), "dt_limit": [0.0, end]}
    (tmp_path / "source" / "config.json").write_text(json.dumps(said))

    report = export(tmp_path / "source", tmp_path / "bundle", verify=False)

    kept = json.loads((report.out / "manifest.json").read_text())["source"]["config"]
    assert kept["dt_limit"] == [0.0, {"__float__": "Infinity"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_before_gate": True}, "norm_before_gate = True"),
        ({"dt_limit": [0.001, 0.1]}, r"dt_limit = \[0\.001, 0\.1\]"),
        ({"num_heads": 3}, "num_heads = 3, of which only None or 4"),
        ({"head_dim": 7}, "head_dim = 7: 24 entries cannot be cut into 7 heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, above"),
    ],
)
def test_what_flash_linear_attention_does_otherwise_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        FLA.configure({**of_fla(SECOND), **changes}, {})


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("mamba", {"rms_norm": False}, "rms_norm = False"),
        ("mamba", {"d_intermediate": 8}, "d_intermediate = 8"),
        ("mamba", {"attn_layer_idx": [9]}, "layers of attention"),
        ("mamba", {"ssm_cfg": {"layer": "Mamba2"}}, "layer = 'Mamba2', its weights are Mamba1"),
        ("mamba", {"ssm_cfg": {"bias": True}}, "bias = True"),
        ("mamba", {"ssm_cfg": {"dt_limit": [0, 1]}}, "dt_limit in ssm_cfg, which is not known"),
        ("mamba2", {"ssm_cfg": {"layer": "Mamba2", "ngroups": 8}}, "ngroups = 8 and d_state = 128"),
        ("mamba2", {"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}}, "rmsnorm = False"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    kind: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        LAYOUT.configure({**KEYS[kind]["config"], **changes}, KEYS[kind]["keys"])


def test_of_weights_alone_mamba_is_told_and_mamba_2_is_asked_for() -> None:
    """What no shape tells is the number of groups."""
    assert LAYOUT.configure({}, KEYS["mamba"]["keys"])["step_rank"] == 48
    with pytest.raises(SourceError, match="nothing tells ngroups: pass --config"):
        LAYOUT.configure({}, KEYS["mamba2"]["keys"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(kind="mamba3"), "kind is 'mamba3'"),
        (Config(inner_size=100), "inner_size 100 in heads of 64"),
    ],
)
def test_configs_that_make_no_model_are_refused(config: Config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(config)
